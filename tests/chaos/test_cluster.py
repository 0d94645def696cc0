"""The whole sidecar on a real Redis Cluster: three masters with a replica each. A master dies, and another one hangs until it has a successor."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from breakable import BreakableHouse
from house import Guest, until
from traffic import Traffic
from wire import figure

from extproc.local.valkey_cluster import Cluster, Node
from extproc.stores.cluster import slot_of
from extproc.stores.shards import tag_of

pytestmark = pytest.mark.long

A_SECOND = 40
SERVED_AGAIN_S = 30.0


class ClusterHouse(BreakableHouse):
    def __init__(self, directory: Path) -> None:
        self.cluster = Cluster(directory / "cluster", replicas=True)
        super().__init__(directory, redis_url=self.cluster.url)

    def stop(self) -> None:
        super().stop()
        self.cluster.stop()

    def master_of(self, guest: Guest, *, besides: Node | None = None) -> Node | None:
        """Who serves an account's shard; ``besides``: whom not to ask."""
        says = next(node for node in self.cluster.nodes if node.engine.alive and node is not besides)
        return self.cluster.master_of(slot_of(tag_of(guest.id)), says=says)


@pytest.fixture(scope="module")
def cluster_house() -> Iterator[ClusterHouse]:
    directory = Path(tempfile.mkdtemp(prefix="xk-", dir="/tmp"))
    directory.chmod(0o711)
    house = ClusterHouse(directory)
    yield house
    house.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def more(traffic: Traffic, requests: int) -> None:
    target = len(traffic.with_status(200)) + requests
    await asyncio.to_thread(until, lambda: len(traffic.with_status(200)) >= target, "somebody is served", SERVED_AGAIN_S)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs and comes back"])
async def test_a_master_has_a_successor(cluster_house: ClusterHouse, blow: signal.Signals):
    """Refused meanwhile; afterwards every shard of it is rebuilt on the other one, and everything served was charged once."""
    house = cluster_house
    guest = await asyncio.to_thread(house.guest)
    old = house.master_of(guest)
    assert old is not None
    async with Traffic(house, guest, a_second=A_SECOND) as traffic:
        await more(traffic, 20)
        old.engine.signal(blow)
        struck_s = time.monotonic()
        await asyncio.to_thread(
            until, lambda: house.master_of(guest, besides=old) not in (None, old), "a replica is master", SERVED_AGAIN_S
        )
        promoted_s = time.monotonic()
        await more(traffic, 20)
        served_s = time.monotonic()
        if blow is signal.SIGSTOP:
            old.engine.signal(signal.SIGCONT)  # it believes that it is master still, until somebody tells it
        else:
            await house.aside(old.start_again)
        await more(traffic, 40)
    statuses = Counter(told.status for told in traffic.told)
    figure(
        f"a master {blow.name}: promoted after {promoted_s - struck_s:.1f} s, served {served_s - promoted_s:.1f} s later; {dict(statuses)}"
    )
    assert set(statuses) == {200, 503}
    assert all(told.whole for told in traffic.told)
    rows = await asyncio.to_thread(house.judge, guest, traffic.told)
    assert {row["request_id"] for row in rows if row["cost"]} == {told.request_id for told in traffic.with_status(200)}
