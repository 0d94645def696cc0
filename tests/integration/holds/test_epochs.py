"""A restart, an emptied server, a promoted replica: seen within a second, on shards that nobody calls too, and nothing is done meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from integration.holds.bank import Bank, granted
from integration.holds.cutting_proxy import CuttingProxy

from extproc.errors import StoreError, StoreFenced, StoreUnknown
from extproc.holds.fresh import open_fresh
from extproc.holds.port import ShardState
from extproc.holds.redis import RedisHolds
from extproc.local import valkey as engine
from extproc.money.hold import EndResult
from extproc.stores.pipeline import Pipeline
from extproc.stores.shards import SHARDS, TAGS, shard_of

SEEN_S = 1.0
ALL = frozenset(range(SHARDS))
ANNA = shard_of("anna")


@pytest.fixture
def own(engine_directory: Path, request: pytest.FixtureRequest) -> Iterator[engine.Valkey]:
    server = engine.start(engine_directory / f"ep-{abs(hash(request.node.name)) % 100_000}", durable=True)
    yield server
    server.kill()


@pytest.fixture
async def proxy(own: engine.Valkey) -> AsyncIterator[CuttingProxy]:
    """The address that everybody calls, whoever stands behind it."""
    async with CuttingProxy(own.socket_file, own.directory / "proxy.sock") as proxy:
        yield proxy


class Watched:
    """A process that watches, and what it was told: how many shards were closed, look by look."""

    def __init__(self, url: str) -> None:
        self.pipeline = Pipeline(url, timeout_ms=500)
        self.holds = RedisHolds(self.pipeline)
        self.bank = Bank(self.holds)
        self.looks: list[int] = []

    async def __aenter__(self) -> Self:
        await self.pipeline.open()
        await open_fresh(self.holds)
        self._watch = asyncio.create_task(self.holds.watch(self._told))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch
        await self.pipeline.close()

    def _told(self, states: Sequence[ShardState]) -> None:
        self.looks.append(sum(state.is_open for state in states))


@pytest.fixture
async def watched(proxy: CuttingProxy) -> AsyncIterator[Watched]:
    async with Watched(proxy.url) as watched:
        await watched.bank.payer(1_000)
        yield watched


async def _within(seconds: float, condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)
    took = time.monotonic() - began
    assert took < seconds, f"{took:.2f} s"
    return took


async def test_before_anybody_has_looked_all_shards_are_closed(redis_url: str) -> None:
    pipeline = Pipeline(redis_url)
    holds = RedisHolds(pipeline)
    await pipeline.open()
    bank = Bank(holds)
    assert holds.closed == ALL
    with pytest.raises(StoreFenced):
        await bank.admit(bank.id())
    await open_fresh(holds)
    assert holds.closed == frozenset()
    await bank.payer(5)
    await pipeline.close()


async def test_a_watch_looks_again_and_again(watched: Watched) -> None:
    await _within(3, lambda: len(watched.looks) >= 3)
    assert set(watched.looks) == {SHARDS}


async def test_a_restarted_server_is_not_called_in_the_epoch_that_it_remembers(
    watched: Watched, own: engine.Valkey, proxy: CuttingProxy
) -> None:
    hold = await watched.bank.open(400)
    old = (await watched.holds.states())[ANNA].epoch
    proxy.lose_replies = True  # the connection ends before the server does: nobody tells
    with pytest.raises(StoreUnknown):
        await watched.bank.settle(watched.bank.id(), 0)
    own.stop()
    own.start_again()
    calls = [watched.bank.id() for _ in range(3)]
    proxy.lose_replies = False
    async with asyncio.timeout(10):
        while not watched.pipeline.connected:
            for call in calls:
                with pytest.raises(StoreError):
                    await watched.bank.admit(call, entry=0)
            await asyncio.sleep(0)
    with pytest.raises(StoreFenced):
        await watched.bank.settle(hold, 1)
    await _within(SEEN_S, lambda: watched.holds.closed == ALL)
    state = (await watched.holds.states())[ANNA]
    assert (state.epoch, state.is_open) == (old, False), "the data are there, of another life"
    await open_fresh(watched.holds)
    assert await watched.bank.settle(hold, 150) is EndResult.ENDED
    assert await watched.bank.balance() == (850, 0, 0, 0)


async def test_a_crash_is_seen_within_a_second_of_the_new_start(watched: Watched, own: engine.Valkey) -> None:
    own.kill()
    await _within(SEEN_S, lambda: watched.holds.closed == ALL)
    own.start_again()
    await _within(SEEN_S + 1, lambda: watched.pipeline.connected)  # it is met with growing pauses
    await open_fresh(watched.holds)
    granted(await watched.bank.admit(watched.bank.id()))


async def test_an_emptied_server_is_seen_though_nobody_calls(watched: Watched) -> None:
    await _within(3, lambda: len(watched.looks) >= 2)
    await watched.pipeline.execute("FLUSHALL")
    await _within(SEEN_S, lambda: watched.holds.closed == ALL)
    with pytest.raises(StoreFenced):
        await watched.bank.admit(watched.bank.id())


async def test_whoever_calls_sees_it_at_once(watched: Watched) -> None:
    lives = watched.holds.lives
    assert await watched.holds.states()
    assert watched.holds.lives == lives
    await watched.pipeline.execute("FLUSHALL")
    with pytest.raises(StoreFenced, match="FENCED"):
        await watched.bank.admit(watched.bank.id())
    assert ANNA in watched.holds.closed
    assert watched.holds.lives > lives, "prices are told again"
    await _within(0.1, lambda: watched.holds.closed == ALL)


async def test_a_shard_that_opens_again_is_called_again(watched: Watched, proxy: CuttingProxy) -> None:
    """By a process that has not opened it: four looks a second."""
    await watched.pipeline.execute("DEL", f"{TAGS[ANNA]}:shard")
    await _within(SEEN_S, lambda: watched.holds.closed == {ANNA})
    async with Watched(proxy.url):
        await _within(0.4, lambda: watched.holds.closed == frozenset())


@pytest.mark.long
async def test_a_promoted_replica_is_not_called_in_the_epoch_of_its_master(
    watched: Watched, own: engine.Valkey, proxy: CuttingProxy, engine_directory: Path
) -> None:
    hold = await watched.bank.open(400)
    replica = engine.start(engine_directory / "ep-replica", durable=False)
    try:
        await _replicate(own, replica)
        proxy.server = replica.socket_file
        connects = watched.pipeline.connects
        proxy.cut()
        await _within(SEEN_S, lambda: watched.holds.closed == ALL and watched.pipeline.connects > connects)
        with pytest.raises(StoreFenced):
            await watched.bank.settle(hold, 150)
        await open_fresh(watched.holds)
        assert await watched.bank.settle(hold, 150) is EndResult.ENDED
        assert await watched.bank.balance() == (850, 0, 0, 0)
        async with Watched(own.url) as left_behind:  # the old master still serves whoever still calls it: both usages are booked
            assert await left_behind.bank.settle(hold, 150) is EndResult.ENDED
    finally:
        replica.kill()


async def _replicate(master: engine.Valkey, replica: engine.Valkey) -> None:
    """Servers listen on sockets only, so the master gets a port for as long as it takes; then the replica is a master itself."""
    admin, its = Pipeline(master.url), Pipeline(replica.url)
    await admin.open()
    await its.open()
    port = await _listening(admin)
    await its.execute("REPLICAOF", "127.0.0.1", port)
    async with asyncio.timeout(20):
        while b"master_link_status:up" not in await its.execute("INFO", "replication"):
            await asyncio.sleep(0.01)
    await its.execute("REPLICAOF", "NO", "ONE")
    await admin.close()
    await its.close()


async def _listening(server: Pipeline) -> int:
    """On a free port of the loopback, which somebody else may take before the server does."""
    for _ in range(10):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with suppress(StoreUnknown):
            await server.execute("CONFIG", "SET", "bind", "127.0.0.1", "port", port)
            return port
    raise AssertionError("no port is free")
