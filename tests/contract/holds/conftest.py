from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from integration.holds.bank import Bank
from integration.holds.invariants import problems

from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.local.valkey_cluster import Cluster
from extproc.stores.cluster import ClusterPipeline
from extproc.stores.pipeline import Client, Pipeline


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three masters."""
    directory = Path(tempfile.mkdtemp(prefix="xm-", dir="/tmp"))
    started = Cluster(directory)
    yield started
    started.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["redis", "cluster"])
async def bank(request: pytest.FixtureRequest) -> AsyncIterator[Bank]:
    """A hold store with one payer and one key. Whatever a test does, the invariants hold when it is over."""
    client: Client
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        client = Pipeline(url, timeout_ms=5_000)
    else:
        masters = request.getfixturevalue("cluster")
        for node in masters.masters:
            node.ask("FLUSHALL")
        url = masters.url
        client = ClusterPipeline(url, timeout_ms=5_000)
    holds = RedisHolds(client, lease_ms=2_000)
    await client.open()
    await open_fresh(holds)
    bank = Bank(holds)
    yield bank
    await client.close()
    assert await problems(url, balances=bank.credited) == []
