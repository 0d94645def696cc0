"""Refused is not unknown, and unknown is not refused: what callers are told when Redis, or the way to it, breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from integration.holds.bank import Bank, denied, granted
from integration.holds.cutting_proxy import CuttingProxy
from integration.holds.invariants import problems

from extproc.errors import StoreError, StoreFenced, StoreRefused, StoreUnknown
from extproc.holds.fresh import open_fresh
from extproc.holds.redis import RedisHolds
from extproc.local import valkey as engine
from extproc.money.hold import DenyReason, EndResult
from extproc.stores import redis_link
from extproc.stores.pipeline import Pipeline

TIMEOUT_MS = 500


@pytest.fixture
def own(engine_directory: Path, request: pytest.FixtureRequest) -> Iterator[engine.Valkey]:
    """A server for this test alone, to be hurt. It remembers what it had acknowledged when it is started again."""
    server = engine.start(engine_directory / f"own-{abs(hash(request.node.name)) % 100_000}", durable=True)
    yield server
    os.kill(server.pid, signal.SIGCONT) if server.engine.alive else None
    server.kill()


@pytest.fixture
async def proxy(own: engine.Valkey) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(own.socket_file, own.directory / "proxy.sock") as proxy:
        yield proxy


@pytest.fixture
async def bank(own: engine.Valkey, proxy: CuttingProxy) -> AsyncIterator[Bank]:
    """Through the proxy, with 1,000 nanos; at the end all invariants hold."""
    pipeline = Pipeline(proxy.url, timeout_ms=TIMEOUT_MS)
    bank = Bank(RedisHolds(pipeline))
    await pipeline.open()
    await open_fresh(bank.holds)
    await bank.payer(1_000)
    yield bank
    await pipeline.close()
    assert await problems(own.url, balances=bank.credited) == []


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("lost", ["lose_replies", "lose_requests"])
async def test_a_connection_lost_after_the_request_was_written_is_unknown(bank: Bank, proxy: CuttingProxy, lost: str) -> None:
    hold = bank.id()
    calls: list[Callable[[], object]] = [
        lambda: bank.admit(hold, request="r1"),
        lambda: bank.amend(hold, 400),
        lambda: bank.settle(hold, 150),
    ]
    pipeline = bank.holds._pipeline
    for call in calls:
        setattr(proxy, lost, True)
        with pytest.raises(StoreUnknown):
            await call()  # type: ignore[misc]
        setattr(proxy, lost, False)
        await _until(lambda: pipeline.connected)
        await call()  # type: ignore[misc]
    assert proxy.cuts >= 3
    assert await bank.balance() == (850, 0, 0, 0), "each was repeated, nothing happened twice"


async def test_voiding_after_an_unknown_outcome_leaves_nothing_held(bank: Bank, proxy: CuttingProxy) -> None:
    pipeline = bank.holds._pipeline
    for lost in ("lose_replies", "lose_requests"):
        hold = bank.id()
        setattr(proxy, lost, True)
        with pytest.raises(StoreUnknown):
            await bank.admit(hold)
        setattr(proxy, lost, False)
        await _until(lambda: pipeline.connected)
        assert await bank.void(hold) is (EndResult.ENDED if lost == "lose_replies" else EndResult.UNKNOWN)
        assert denied(await bank.admit(hold)).reason is DenyReason.ENDED
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_a_server_that_hangs_is_unknown_in_time_and_used_again_afterwards(bank: Bank, own: engine.Valkey) -> None:
    holds = [bank.id() for _ in range(50)]
    os.kill(own.pid, signal.SIGSTOP)
    began = time.monotonic()
    outcomes = await asyncio.gather(*(bank.admit(hold) for hold in holds), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnknown}
    assert TIMEOUT_MS / 1_000 <= time.monotonic() - began < 2
    with pytest.raises(StoreError):
        await bank.admit(bank.id())
    os.kill(own.pid, signal.SIGCONT)
    await _until(lambda: bank.holds._pipeline.connected)
    assert {await bank.void(hold) for hold in holds} <= {EndResult.ENDED, EndResult.UNKNOWN}
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_a_killed_server_refuses_and_is_met_again_with_an_empty_script_cache(bank: Bank, own: engine.Valkey) -> None:
    pipeline = bank.holds._pipeline
    hold = await bank.open(400)
    await pipeline.execute("BGREWRITEAOF")
    await asyncio.wait_for(_synced(pipeline), 10)
    own.kill()
    await _until(lambda: not pipeline.connected)
    with pytest.raises(StoreRefused, match="not connected"):
        await bank.admit(bank.id())
    own.start_again()
    await _until(lambda: pipeline.connected)
    with pytest.raises(StoreFenced):
        await bank.settle(hold, 100)
    await open_fresh(bank.holds)
    assert await bank.settle(hold, 100) is EndResult.ENDED
    assert await bank.balance() == (900, 0, 0, 0)


async def _synced(pipeline: Pipeline) -> None:
    """SIGKILL alone loses nothing that was written to the AOF; the rewrite merely has to be over."""
    while b"aof_rewrite_in_progress:1" in await pipeline.execute("INFO", "persistence"):
        await asyncio.sleep(0.01)


async def test_a_script_cache_that_was_flushed_is_filled_again(bank: Bank) -> None:
    pipeline = bank.holds._pipeline
    await pipeline.execute("SCRIPT", "FLUSH")
    ids = [bank.id() for _ in range(600)]
    verdicts = await asyncio.gather(*(bank.admit(hold, entry=1) for hold in ids))
    assert all(map(granted, verdicts))
    assert {await bank.void(hold) for hold in ids} == {EndResult.ENDED}
    stats = await pipeline.execute("INFO", "commandstats")
    (line,) = [line for line in stats.decode().splitlines() if line.startswith("cmdstat_script|load:")]
    assert int(line.split("calls=")[1].split(",")[0]) < 30, "one load serves all calls that met the empty cache"


async def test_a_full_server_refuses_new_holds_and_settles_open_ones(bank: Bank) -> None:
    pipeline = bank.holds._pipeline
    beaten, settled = await bank.open(100), await bank.open(100)
    entry = bank.id()
    granted(await bank.admit(entry))
    await pipeline.execute("CONFIG", "SET", "maxmemory", "1")
    for call in (bank.admit(bank.id()), bank.amend(entry, 5), bank.holds.note("anna", b"{}")):
        with pytest.raises(StoreRefused, match="OOM"):
            await call
    await bank.beat(beaten, 30)
    assert await bank.settle(settled, 50) is EndResult.ENDED
    assert await bank.void(entry) is EndResult.ENDED
    assert await bank.holds.credit("anna", version=2, total_nanos=2_000, credit_nanos=0)
    bank.credited["anna"] = 2_000
    assert await bank.holds.set_frozen("anna", version=1, frozen=False)
    await bank.holds.expire(0)
    await pipeline.execute("CONFIG", "SET", "maxmemory", "0")
    assert await bank.balance() == (1_850, 100, 0, 1)


async def test_a_replica_refuses(bank: Bank) -> None:
    pipeline = bank.holds._pipeline
    await pipeline.execute("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(StoreRefused, match="READONLY"):
            await bank.admit(bank.id())
        with pytest.raises(StoreRefused, match="READONLY"):
            await bank.settle(bank.id(), 0)
    finally:
        await pipeline.execute("REPLICAOF", "NO", "ONE")


async def test_calls_that_wait_are_bounded(bank: Bank, own: engine.Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "CALLS_MAX", 100)
    outcomes = await asyncio.gather(*(bank.admit(bank.id(), entry=0) for _ in range(130)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, StoreRefused)]
    assert len(refused) == 30
    assert (await bank.balance())[3] == 100


async def test_a_broken_argument_is_unknown_because_scripts_do_not_roll_back(bank: Bank) -> None:
    pipeline = bank.holds._pipeline
    (name,) = await pipeline.execute("KEYS", "*:payer:anna")
    await pipeline.execute("HSET", name, "entry_held", "x")
    with pytest.raises(StoreUnknown, match="not an integer"):
        await bank.admit(bank.id())
    await pipeline.execute("HSET", name, "entry_held", "0")


async def test_the_password_and_the_database_of_the_url_are_used(own: engine.Valkey) -> None:
    admin = Pipeline(own.url)
    await admin.open()
    await admin.execute("CONFIG", "SET", "requirepass", "sesame")
    await admin.close()
    shut = Pipeline(own.url)
    await shut.open()
    assert not shut.connected
    with pytest.raises(StoreRefused, match="NOAUTH"):
        await shut.execute("PING")
    await shut.close()
    for right in (Pipeline(own.url + "?db=3&password=sesame"), Pipeline(own.url + "?db=3&password=wrong", password="sesame")):
        await right.open()
        assert b" db=3 " in await right.execute("CLIENT", "INFO")
        await right.close()
        with pytest.raises(StoreRefused, match="closed"):
            await right.execute("PING")


async def test_no_server_is_refused_at_once(tmp_path: Path) -> None:
    pipeline = Pipeline(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(StoreRefused, match="not opened"):
        await pipeline.execute("PING")
    await pipeline.open()
    assert not pipeline.connected
    with pytest.raises(StoreRefused, match="not connected"):
        await pipeline.execute("PING")
    await pipeline.close()


async def test_a_call_whose_caller_has_gone_does_no_harm(bank: Bank) -> None:
    pipeline = bank.holds._pipeline
    calls = [pipeline.execute("ECHO", str(number)) for number in range(10)]
    for call in calls[::2]:
        call.cancel()
    assert await asyncio.gather(*calls[1::2]) == [b"1", b"3", b"5", b"7", b"9"]


def test_all_of_it_under_uvloop(own: engine.Valkey) -> None:
    async def main() -> None:
        async with CuttingProxy(own.socket_file, own.directory / "uv.sock") as proxy:
            pipeline = Pipeline(proxy.url, timeout_ms=TIMEOUT_MS, pipeline_max=7)
            bank = Bank(RedisHolds(pipeline))
            await pipeline.open()
            await open_fresh(bank.holds)
            await bank.payer(1_000)
            holds = await asyncio.gather(*(bank.open(10) for _ in range(50)))
            proxy.lose_replies = True
            outcomes = await asyncio.gather(*(bank.settle(hold, 4) for hold in holds), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {StoreUnknown}
            proxy.lose_replies = False
            await _until(lambda: pipeline.connected)
            assert {await bank.settle(hold, 4) for hold in holds} <= {EndResult.ENDED, EndResult.ALREADY}
            assert await bank.balance() == (800, 0, 0, 0)
            await pipeline.close()

    uvloop.run(main())


async def test_a_master_that_its_replicas_have_left_takes_nothing(bank: Bank) -> None:
    """``min-replicas-to-write``: what bounds an old master that nobody tells of its successor. Each call can be made again as it was."""
    hold = bank.id()
    pipeline = bank.holds._pipeline
    for call in (lambda: bank.admit(hold, entry=5), lambda: bank.amend(hold, 400), lambda: bank.settle(hold, 150)):
        before = await bank.balance()
        await pipeline.execute("CONFIG", "SET", "min-replicas-to-write", 1)
        with pytest.raises(StoreRefused, match="NOREPLICAS"):
            await call()
        assert await bank.balance() == before
        await pipeline.execute("CONFIG", "SET", "min-replicas-to-write", 0)
        await call()
    assert await bank.balance() == (850, 0, 0, 0)
