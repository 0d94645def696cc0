"""What the poster reads: every ending once, in order, with a sequence number without gaps."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from integration.holds.bank import Bank, granted, row

from extproc.edge.closing import Closing
from extproc.errors import StoreRefused
from extproc.holds.redis import NOTES_WAITING_MAX
from extproc.holds.stream import RedisEventStream
from extproc.money.hold import EndResult
from extproc.stores.pipeline import Pipeline
from extproc.stores.shards import SHARDS, TAGS, shard_of

ALL = dict.fromkeys(range(SHARDS), "0-0")


async def test_an_ending_is_an_event_with_all_that_the_ledger_needs(bank: Bank, pipeline: Pipeline) -> None:
    await bank.payer(2**54)
    hold = await bank.open(2**53 + 1)
    await bank.settle(hold, 2**53 - 1)
    await bank.settle(hold, 2**53 - 1)
    (event,) = await RedisEventStream(pipeline).read(ALL, count=10, block_ms=0)
    assert (event.shard, event.kind, event.hold_id, event.payer_id, event.key_id) == (shard_of("anna"), "settle", hold, "anna", "k1")
    assert (event.charge_nanos, event.reserved_nanos, event.epoch, event.seq) == (2**53 - 1, 2**53 + 1, f"{pipeline.run_id('')}.1", 1)
    assert event.row == row(hold, "settle")
    assert abs(event.occurred_ms - time.time_ns() // 1_000_000) < 10_000


async def test_events_come_in_order_in_pages_and_go_when_trimmed(bank: Bank, pipeline: Pipeline) -> None:
    await bank.payer(1_000)
    holds = [await bank.open(1) for _ in range(7)]
    for hold in holds:
        await bank.void(hold)
    stream, shard = RedisEventStream(pipeline), shard_of("anna")
    first = await stream.read({shard: "0-0"}, count=4, block_ms=0)
    rest = await stream.read({shard: first[-1].stream_id}, count=4, block_ms=0)
    assert [event.hold_id for event in (*first, *rest)] == holds
    assert [event.seq for event in (*first, *rest)] == [1, 2, 3, 4, 5, 6, 7]
    assert await stream.read({shard: rest[-1].stream_id}, count=4, block_ms=0) == []
    assert await stream.read({}, count=4, block_ms=0) == []
    await stream.trim(shard, first[-1].stream_id)
    bank.trimmed = True
    assert await stream.read({shard: "0-0"}, count=9, block_ms=0) == rest


async def test_refusals_are_noted_without_a_sequence_number(bank: Bank, pipeline: Pipeline) -> None:
    await bank.payer(1_000)
    await bank.holds.note("anna", b'{"status":402}')
    await bank.void(await bank.open(1))
    note, void = await RedisEventStream(pipeline).read(ALL, count=10, block_ms=0)
    assert (note.kind, note.payer_id, note.hold_id, note.key_id, note.seq, note.row) == ("note", "anna", "", "", 0, b'{"status":402}')
    assert (note.charge_nanos, note.reserved_nanos, note.epoch) == (0, 0, f"{pipeline.run_id('')}.1")
    assert (void.kind, void.seq) == ("void", 1)


async def test_a_blocking_read_wakes_up_and_gives_up(bank: Bank, pipeline: Pipeline, redis_url: str) -> None:
    own = Pipeline(redis_url, timeout_ms=300)
    await own.open()
    stream = RedisEventStream(own)
    await bank.payer(1_000)
    try:
        assert await stream.read(ALL, count=10, block_ms=400) == [], "longer than the time-out of an ordinary call"
        reading = asyncio.ensure_future(stream.read(ALL, count=10, block_ms=5_000))
        hold = await bank.open(1)
        await bank.void(hold)
        async with asyncio.timeout(2):
            assert [event.hold_id for event in await reading] == [hold]
    finally:
        await own.close()


async def test_payers_are_spread_and_each_shard_counts_for_itself(bank: Bank, pipeline: Pipeline) -> None:
    payers = [f"payer {number}" for number in range(200)]
    for payer in payers:
        await bank.payer(10, payer=payer)
        hold = bank.id()
        granted(await bank.admit(hold, payer=payer))
        await bank.void(hold, payer=payer)
    events = await RedisEventStream(pipeline).read(ALL, count=100, block_ms=0)
    assert len(events) == 200
    assert all(event.shard == shard_of(event.payer_id) for event in events)
    assert len({event.shard for event in events}) > 50


async def test_rows_of_refusals_are_dropped_while_too_much_waits(bank: Bank, pipeline: Pipeline) -> None:
    """The ledger is away for hours, refusals come by the thousand: they must not push out what earns money. Endings go on."""
    await bank.payer(1_000)
    hold = await bank.open(1)
    stream, shard = RedisEventStream(pipeline), shard_of("anna")
    name, waiting = f"{TAGS[shard]}:events", NOTES_WAITING_MAX - 1
    await pipeline.execute("EVAL", "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'k', 'note') end", 1, name, waiting)
    await bank.holds.note("anna", b"the last")
    failures: list[str] = []
    closing = Closing(bank.holds, SimpleNamespace(is_full=False), SimpleNamespace(store_failed=failures.append), jitter=lambda: 0)  # type: ignore[arg-type]
    closing.note("anna", b"one too many")
    with pytest.raises(StoreRefused):
        await bank.holds.note("anna", b"one too many")
    assert failures == ["redis_note"]
    assert await pipeline.execute("XLEN", name) == NOTES_WAITING_MAX
    assert await bank.void(hold) is EndResult.ENDED
    ((last, _),) = await pipeline.execute("XREVRANGE", name, "+", "-", "COUNT", 1)
    await stream.trim(shard, last.decode())
    await bank.holds.note("anna", b"room again")
    await pipeline.execute("DEL", name)
    bank.trimmed = True
