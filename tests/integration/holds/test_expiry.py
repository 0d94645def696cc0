"""Leases, beats and the reaper, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import json

import pytest
from integration.holds.bank import Bank, denied, granted, row
from integration.holds.shard_clock import ShardClock

from extproc.holds.fresh import open_fresh
from extproc.holds.redis import EXPIRE_BATCH
from extproc.holds.shards import HOLD_AGE_MS_MAX
from extproc.holds.stream import RedisEventStream
from extproc.money.hold import NO_LIMITS, Admission, Checkpoint, DenyReason, EndResult
from extproc.stores.pipeline import Pipeline

LEASE_MS = 60_000


@pytest.fixture
async def clock(pipeline: Pipeline, bank: Bank) -> ShardClock:
    """Its reaper has been at work for more than a lease."""
    clock = ShardClock(pipeline, bank.holds)
    await clock.pass_by(LEASE_MS + 4_000)
    return clock


async def test_a_hold_without_beats_ends_at_its_last_checkpoint(bank: Bank, clock: ShardClock, pipeline: Pipeline) -> None:
    await bank.payer(1_000)
    entry, bare, beaten = bank.id(), await bank.open(100), await bank.open(200)
    granted(await bank.admit(entry, entry=10))
    await bank.beat(beaten, 70)
    assert await clock.pass_by(LEASE_MS - 4_000) == []
    assert set(await clock.pass_by(6_000)) == {entry, bare, beaten}
    assert await bank.balance() == (930, 0, 0, 0)
    events = await RedisEventStream(pipeline).read({clock.shard: "0-0"}, count=10, block_ms=0)
    assert {(event.hold_id, event.kind, event.charge_nanos, event.reserved_nanos) for event in events} == {
        (entry, "expire", 0, 0),
        (bare, "expire", 0, 100),
        (beaten, "expire", 70, 200),
    }
    rows = {event.hold_id: event.row for event in events}
    assert rows == {entry: row(entry, "admit"), bare: row(bare, "amend"), beaten: row(beaten, "beat 70")}
    assert await bank.settle(beaten, 90) is EndResult.ALREADY
    assert denied(await bank.amend(entry, 1)).reason is DenyReason.ENDED


async def test_a_budget_counts_what_comes_late(bank: Bank, clock: ShardClock) -> None:
    """The difference to what it expired at, once; on credit, of which Redis takes nothing, as well."""
    await bank.payer(1_000, budget_nanos="900")
    late, lent = await bank.open(200), bank.id()
    granted(await bank.admit(lent))
    await bank.beat(late, 70)
    await clock.pass_by(LEASE_MS + 2_000)
    assert await bank.budget_used() == 70
    for hold, charge, used in ((late, 60, 70), (late, 190, 190), (late, 100, 190), (lent, 500, 690)):
        for _ in range(2):
            assert await bank.settle(hold, charge) is EndResult.ALREADY
            assert await bank.budget_used() == used
    await bank.void(late)
    assert await bank.budget_used() == 690


async def test_what_the_owner_knows_better_after_the_reaper_goes_to_the_ledger_once(
    bank: Bank, clock: ShardClock, pipeline: Pipeline
) -> None:
    await bank.payer(1_000)
    better, worse, voided = await bank.open(200), await bank.open(100), await bank.open(100)
    await bank.beat(better, 70)
    await bank.beat(worse, 70)
    await clock.pass_by(LEASE_MS + 2_000)
    balance = await bank.balance()
    for _ in range(3):
        assert await bank.settle(better, 190) is EndResult.ALREADY
    assert await bank.settle(worse, 60) is EndResult.ALREADY
    assert await bank.void(voided) is EndResult.ALREADY
    assert await bank.balance() == balance, "the ledger takes the difference, by a credit"
    events = await RedisEventStream(pipeline).read({clock.shard: "0-0"}, count=10, block_ms=0)
    late = [event for event in events if event.kind == "settle"]
    assert [(event.hold_id, event.charge_nanos, event.reserved_nanos, event.seq, event.payer_id) for event in late] == [
        (better, 190, 200, 0, "anna")
    ]


async def test_beats_keep_a_hold(bank: Bank, clock: ShardClock) -> None:
    await bank.payer(1_000)
    hold = await bank.open(100)
    for _ in range(3):
        assert await clock.pass_by(40_000) == []
        await bank.beat(hold, 0)
    assert await bank.settle(hold, 5) is EndResult.ENDED


async def test_checkpoints_never_fall_and_never_pass_the_cap(bank: Bank, clock: ShardClock) -> None:
    await bank.payer(2**54)
    hold = await bank.open(2**53 + 1)
    for charge, expected in [(2**53 - 1, 2**53 - 1), (9, 2**53 - 1), (2**53, 2**53), (2**53 + 1, 2**53 + 1), (2**53 + 2, 2**53 + 1)]:
        await bank.beat(hold, charge)
        assert [found.checkpoint_nanos for found in await bank.holds.open_holds("anna")] == [expected]
    await clock.pass_by(LEASE_MS + 2_000)
    assert await bank.balance() == (2**54 - 2**53 - 1, 0, 0, 0)


async def test_a_row_comes_with_its_checkpoint_or_not_at_all(bank: Bank, clock: ShardClock, pipeline: Pipeline) -> None:
    await bank.payer(1_000)
    hold = await bank.open(100)
    await bank.beat(hold, 50)
    await bank.beat(hold, 20)
    await bank.beat(hold, 50, data=b"")
    await clock.pass_by(LEASE_MS + 2_000)
    (event,) = await RedisEventStream(pipeline).read({clock.shard: "0-0"}, count=10, block_ms=0)
    assert json.loads(event.row)["last"] == "beat 50"


async def test_foreign_and_ended_holds_are_not_renewed(bank: Bank, clock: ShardClock, pipeline: Pipeline) -> None:
    await bank.payer(1_000)
    hold, ended = await bank.open(100), await bank.open(100)
    await bank.void(ended)
    await clock.pass_by(40_000)
    await bank.beat(hold, 50, owner="somebody else")
    await bank.beat(ended, 50)
    await bank.beat(bank.id(), 50)
    assert await clock.pass_by(22_000) == [hold]
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_no_hold_lives_for_ever(bank: Bank, clock: ShardClock) -> None:
    await bank.payer(1_000)
    hold = await bank.open(100)
    await clock.jump(HOLD_AGE_MS_MAX - 30_000)
    await bank.beat(hold, 30)
    await clock.pass_by(2_000)
    assert await clock.pass_by(LEASE_MS + 2_000) == [hold], "quiet for a lease, since the jump looks like a pause of the reaper"
    assert await bank.balance() == (970, 0, 0, 0)


async def test_a_clock_that_jumps_forward_expires_nothing_early(bank: Bank, clock: ShardClock) -> None:
    await bank.payer(1_000)
    hold = await bank.open(100)
    await clock.jump(LEASE_MS + 1_000)
    assert await clock.pass_by(4_000) == []
    await bank.beat(hold, 10)
    assert await clock.pass_by(LEASE_MS - 6_000) == []
    assert await clock.pass_by(10_000) == [hold]


async def test_a_clock_that_jumps_back_expires_nothing_early(bank: Bank, clock: ShardClock, pipeline: Pipeline) -> None:
    """The shard has seen a later time than Redis shows: leases begin there, and time waits until Redis has caught up."""
    await bank.payer(1_000)
    before = await clock.now_ms()
    seconds, _ = await pipeline.execute("TIME")
    assert before > int(seconds) * 1_000 + 50_000
    hold = await bank.open(100)
    (found,) = await bank.holds.open_holds("anna")
    assert found.lease_ms == before + LEASE_MS
    assert await bank.holds.expire(clock.shard) == []
    assert await bank.void(hold) is EndResult.ENDED


@pytest.mark.parametrize("what", ["pause", "epoch", "reconnect"])
async def test_nothing_expires_for_a_lease_after_beats_may_have_been_lost(
    bank: Bank, clock: ShardClock, pipeline: Pipeline, what: str
) -> None:
    await bank.payer(1_000)
    hold = await bank.open(100)
    await clock.pass_by(LEASE_MS - 4_000)
    if what == "pause":
        await clock.jump(11_000)
    elif what == "epoch":
        (state,) = [state for state in await bank.holds.states() if state.shard == clock.shard]
        epoch = f"{state.run_id}.2"
        await bank.holds.begin(clock.shard, epoch=epoch, cursor="0-0")
        await open_fresh(bank.holds)
    else:
        connects = pipeline.connects
        await pipeline.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
        async with asyncio.timeout(5):
            while pipeline.connects == connects or not pipeline.connected:
                await asyncio.sleep(0.005)
    assert await clock.pass_by(LEASE_MS - 4_000) == []
    assert await clock.pass_by(10_000) == [hold]


async def test_one_call_ends_a_bounded_number(bank: Bank, clock: ShardClock) -> None:
    await bank.payer(1_000)
    for _ in range(EXPIRE_BATCH + 6):
        granted(await bank.admit(bank.id(), entry=1))
    await clock.pass_by(LEASE_MS - 2_000)
    await clock.jump(4_000)
    assert [len(await bank.holds.expire(clock.shard)) for _ in range(3)] == [EXPIRE_BATCH, 6, 0]
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_beats_of_many_payers_in_one_call(bank: Bank) -> None:
    payers = [f"payer {number}" for number in range(100)]
    ids = {payer: bank.id() for payer in payers}
    for payer in payers:
        await bank.payer(100, payer=payer)
        granted(await bank.admit(ids[payer], payer=payer))
        granted(await bank.amend(ids[payer], 50, payer=payer))
    await bank.holds.beat(
        [
            Checkpoint(hold_id=ids[payer], owner=ids[payer], payer_id=payer, charge_nanos=number % 50, row=b"")
            for number, payer in enumerate(payers)
        ]
    )
    found = {hold.payer_id: hold.checkpoint_nanos for hold in await bank.holds.open_holds()}
    assert found == {payer: number % 50 for number, payer in enumerate(payers)}
    await bank.holds.beat([])


async def test_a_retry_after_the_dedupe_time_is_a_request_of_its_own(bank: Bank, pipeline: Pipeline, clock: ShardClock) -> None:
    await bank.payer(1_000)
    first, second = bank.id(), bank.id()
    granted(await bank.admit(first, request="r1"))
    (name,) = await pipeline.execute("KEYS", "*:request:*")
    assert 59_000 < await pipeline.execute("PTTL", name) <= 60_000
    await pipeline.execute("PEXPIRE", name, 1)
    async with asyncio.timeout(5):
        while await pipeline.execute("EXISTS", name):
            await asyncio.sleep(0.001)
    assert granted(await bank.admit(second, request="r1")).hold_id == second


async def test_a_tombstone_stays_for_15_minutes(bank: Bank, pipeline: Pipeline) -> None:
    await bank.payer(1_000)
    hold = await bank.open(100)
    await bank.settle(hold, 42)
    (name,) = await pipeline.execute("KEYS", "*:hold:*")
    assert await pipeline.execute("HMGET", name, "state", "kind", "amount") == [b"ended", b"settle", b"42"]
    assert 890_000 < await pipeline.execute("PTTL", name) <= 900_000


async def test_a_denied_admit_leaves_nothing_behind(bank: Bank, pipeline: Pipeline) -> None:
    await bank.payer(5)
    before = await _names(pipeline)
    fields = await pipeline.execute("HGETALL", next(name for name in before if b":payer:" in name))
    admission = Admission(
        hold_id=bank.id(),
        payer_id="anna",
        key_id="k1",
        request_id="r9",
        entry_nanos=6,
        account_limits=NO_LIMITS,
        key_limits=NO_LIMITS,
        row=b"{}",
    )
    denied(await bank.holds.admit(admission))
    assert await _names(pipeline) == before
    assert await pipeline.execute("HGETALL", next(name for name in before if b":payer:" in name)) == fields


async def _names(pipeline: Pipeline) -> list[bytes]:
    """Of all keys but those that know the time."""
    return sorted(name for name in await pipeline.execute("KEYS", "*") if not name.endswith(b":shard"))
