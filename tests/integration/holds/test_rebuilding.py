"""The life of a shard: closed, asserted, counted, restored, opened. Every step once or often, in its epoch or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from integration.holds.bank import Bank, denied, granted
from integration.holds.builder import Builder, posting, reassertion
from integration.holds.conftest import LEASE_MS
from integration.holds.shard_clock import ShardClock

from extproc.errors import StoreFenced
from extproc.holds.stream import RedisEventStream
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import DenyReason, EndResult
from extproc.stores.shards import SHARDS


@pytest.fixture
async def builder(bank: Bank) -> Builder:
    """Of anna's shard. It rebuilds the shard from what the bank has credited, and leaves it open."""
    await bank.payer(1_000)
    bank.trimmed = True  # what was charged is what a test says, not what a stream has kept
    return await Builder.of(bank)


async def _events(bank: Bank, builder: Builder) -> list[tuple[str, str, int, int]]:
    events = await RedisEventStream(bank.holds._pipeline).read({builder.shard: "0-0"}, count=100, block_ms=0)
    return [(event.hold_id, event.kind, event.charge_nanos, event.seq) for event in events]


async def test_all_shards_say_what_they_are(bank: Bank, builder: Builder) -> None:
    states = await bank.holds.states()
    assert [state.shard for state in states] == list(range(SHARDS))
    assert all(state.is_open for state in states)
    assert len({state.run_id for state in states}) == 1
    epoch = await builder.begin()
    state = (await bank.holds.states())[builder.shard]
    assert (state.epoch, state.rebuilding, state.is_open) == ("", epoch, False)
    assert bank.holds.closed == {builder.shard}
    await builder.finish(epoch)
    state = (await bank.holds.states())[builder.shard]
    assert (state.epoch, state.rebuilding, state.is_open) == (epoch, "", True)
    assert bank.holds.closed == frozenset()


async def test_nothing_is_done_in_a_closed_shard(bank: Bank, builder: Builder) -> None:
    hold, entry = await bank.open(400), bank.id()
    granted(await bank.admit(entry))
    epoch = await builder.begin()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: bank.admit(bank.id()),
        lambda: bank.amend(entry, 5),
        lambda: bank.settle(hold, 5),
        lambda: bank.void(entry),
        lambda: bank.holds.note("anna", b"{}"),
        lambda: bank.holds.expire(builder.shard),
        lambda: bank.holds.credit("anna", version=9, total_nanos=5, credit_nanos=5),
        lambda: bank.holds.install_payer("anna", version=9, total_nanos=5, available_nanos=5, credit_nanos=5),
        lambda: bank.holds.set_frozen("anna", version=9, frozen=True),
        lambda: bank.key(version=9, revoked="1"),
    ]
    before = await bank.balance()
    for call in calls:  # by the script, which makes the shard known as closed, then without asking
        with pytest.raises(StoreFenced):
            await call()
        with pytest.raises(StoreFenced, match="is closed"):
            await call()
        bank.holds._epochs._known[builder.shard] = builder.opened
    with pytest.raises(StoreFenced):
        await bank.beat(hold, 5)
    await bank.beat(hold, 5)
    assert await bank.balance() == before
    await builder.finish(epoch)
    assert await bank.settle(hold, 5) is EndResult.ENDED
    assert await bank.void(entry) is EndResult.ENDED
    assert await bank.balance() == (995, 0, 0, 0)


async def test_who_builds_under_a_lower_number_is_refused(bank: Bank, builder: Builder) -> None:
    await builder.begin()
    lower = builder.next
    await builder.begin()
    higher = builder.next
    await bank.holds.begin(builder.shard, epoch=higher, cursor="0-0")
    steps: list[Callable[[], Awaitable[object]]] = [
        lambda: bank.holds.begin(builder.shard, epoch=lower, cursor="0-0"),
        lambda: bank.holds.asserted(builder.shard, epoch=lower),
        lambda: bank.holds.reassert("w", builder.shard, epoch=lower, holds=[], endings=[], is_all=True),
        lambda: bank.holds.count(builder.shard, epoch=lower),
        lambda: builder.restore(lower, []),
        lambda: bank.holds.open(builder.shard, epoch=lower),
        lambda: bank.holds.open(builder.shard, epoch=higher),  # not counted
        lambda: builder.restore(higher, []),
    ]
    for step in steps:
        with pytest.raises(StoreFenced):
            await step()
    assert await bank.holds.asserted(builder.shard, epoch=higher) == frozenset()
    await builder.finish(higher)
    with pytest.raises(StoreFenced):
        await bank.holds.begin(builder.shard, epoch=higher, cursor="0-0")
    await bank.holds.open(builder.shard, epoch=higher)
    assert (await bank.holds.states())[builder.shard].is_open
    granted(await bank.admit(bank.id()))


async def test_nobody_asserts_while_holds_are_counted(bank: Bank, builder: Builder) -> None:
    hold = bank.id()
    epoch = await builder.begin()
    await builder.lose()
    epoch = await builder.begin()
    assert await bank.holds.asserted(builder.shard, epoch=epoch) == frozenset()
    await bank.holds.reassert("one", builder.shard, epoch=epoch, holds=[reassertion(hold, 400)], endings=[], is_all=False)
    assert await bank.holds.asserted(builder.shard, epoch=epoch) == frozenset()
    await bank.holds.reassert("one", builder.shard, epoch=epoch, holds=[], endings=[], is_all=True)
    await bank.holds.reassert("other", builder.shard, epoch=epoch, holds=[], endings=[], is_all=True)
    assert await bank.holds.asserted(builder.shard, epoch=epoch) == {"one", "other"}
    await bank.holds.begin(builder.shard, epoch=epoch, cursor="0-0")
    assert await bank.holds.asserted(builder.shard, epoch=epoch) == {"one", "other"}, "begun again, it is the same"
    (counted,) = await bank.holds.count(builder.shard, epoch=epoch)
    assert (counted.hold_id, counted.state, counted.reserved_nanos, counted.payer_id) == (hold, "exact", 400, "anna")
    with pytest.raises(StoreFenced):
        await bank.holds.reassert("late", builder.shard, epoch=epoch, holds=[reassertion(bank.id(), 5)], endings=[], is_all=True)
    await builder.finish(epoch)
    assert await bank.balance() == (600, 400, 0, 1)


async def test_a_shard_that_lost_everything_has_its_holds_back(bank: Bank, builder: Builder) -> None:
    holds = [await bank.open(100), await bank.open(200)]
    entry = bank.id()
    granted(await bank.admit(entry, entry=10))
    await builder.lose()
    epoch = await builder.begin()
    asserted = [reassertion(hold, reserved, charge=7) for hold, reserved in zip(holds, (100, 200), strict=True)]
    for _ in range(2):
        await bank.holds.reassert("w", builder.shard, epoch=epoch, holds=[*asserted, reassertion(entry, entry=10)], endings=[], is_all=True)
    await builder.finish(epoch)
    assert await bank.balance() == (700, 300, 10, 3)
    assert {hold.hold_id: hold.checkpoint_nanos for hold in await bank.holds.open_holds("anna")} == {holds[0]: 7, holds[1]: 7, entry: 0}
    granted(await bank.amend(entry, 700))
    assert denied(await bank.admit(bank.id(), entry=1)).reason is DenyReason.HELD
    assert await bank.settle(holds[0], 100) is EndResult.ENDED
    assert await bank.void(holds[1]) is EndResult.ENDED
    assert await bank.settle(entry, 1) is EndResult.ENDED
    assert await bank.balance() == (899, 0, 0, 0)
    assert [seq for *_, seq in await _events(bank, builder)] == [1, 2, 3], "each epoch counts its own"


async def test_what_redis_has_kept_is_left_as_it_is(bank: Bank, builder: Builder) -> None:
    exact, entry, ended = await bank.open(100), bank.id(), await bank.open(50)
    granted(await bank.admit(entry, entry=10))
    await bank.beat(exact, 40)
    await bank.settle(ended, 50)
    epoch = await builder.begin()
    await bank.holds.reassert(
        "w",
        builder.shard,
        epoch=epoch,
        holds=[
            reassertion(exact, 999, charge=30),
            reassertion(entry, 300, charge=20),  # its amend was lost
            reassertion(ended, 50),
        ],
        endings=[],
        is_all=True,
    )
    await builder.finish(epoch, charged=50)
    found = {hold.hold_id: (hold.state, hold.reserved_nanos, hold.checkpoint_nanos) for hold in await bank.holds.open_holds("anna")}
    assert found == {exact: ("exact", 100, 40), entry: ("exact", 300, 20)}
    assert await bank.balance() == (550, 400, 0, 2)


async def test_a_hold_of_somebody_else_is_left_alone(bank: Bank, builder: Builder) -> None:
    first, second = bank.id(), bank.id()
    granted(await bank.admit(first, request="r1"))
    granted(await bank.admit(second, request="r1"))
    granted(await bank.amend(first, 100, owner=second))
    before = await bank.holds.open_holds("anna")
    epoch = await builder.begin()
    await bank.holds.reassert("w", builder.shard, epoch=epoch, holds=[reassertion(first, entry=10)], endings=[], is_all=True)
    await builder.finish(epoch)
    assert await bank.holds.open_holds("anna") == before


async def test_who_comes_late_is_summed_at_once(bank: Bank, builder: Builder) -> None:
    exact, entry, grown = await bank.open(100), bank.id(), bank.id()
    granted(await bank.admit(entry, entry=10))
    await builder.lose()
    await builder.finish(await builder.begin())
    granted(await bank.admit(grown, entry=20))
    assert await bank.balance() == (1_000, 0, 20, 1)
    asserted = [reassertion(exact, 100, charge=1_000), reassertion(entry, entry=10), reassertion(grown, 200)]
    for _ in range(2):
        await bank.holds.reassert("w", builder.shard, epoch=builder.opened, holds=asserted, endings=[], is_all=True)
    assert await bank.balance() == (700, 300, 10, 3)
    assert await bank.settle(exact, 60) is EndResult.ENDED
    await bank.holds.reassert("w", builder.shard, epoch=builder.opened, holds=asserted, endings=[], is_all=True)
    assert await bank.balance() == (740, 200, 10, 2), "what has ended stays ended"
    with pytest.raises(StoreFenced):
        await bank.holds.reassert("w", builder.shard, epoch=f"{builder.opened}9", holds=asserted, endings=[], is_all=True)


async def test_a_late_hold_of_a_payer_or_key_that_redis_lacks_is_not_taken(bank: Bank, builder: Builder) -> None:
    holds = [reassertion(bank.id(), 5, key="nobody's"), reassertion(bank.id(), 5)]
    await bank.holds.reassert("w", builder.shard, epoch=builder.opened, holds=holds, endings=[], is_all=True)
    assert await bank.balance() == (995, 5, 0, 1)


async def test_sums_that_no_integer_can_be_are_not_begun(bank: Bank, builder: Builder) -> None:
    holds = [reassertion(bank.id(), BALANCE_NANOS_MAX) for _ in range(4)]
    await bank.holds.reassert("w", builder.shard, epoch=builder.opened, holds=holds, endings=[], is_all=True)
    assert await bank.balance() == (1_000 - 2 * BALANCE_NANOS_MAX, 2 * BALANCE_NANOS_MAX, 0, 2)
    for hold in holds[:2]:
        await bank.void(hold.hold_id)
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_endings_reach_the_ledger_past_the_sums(bank: Bank, builder: Builder) -> None:
    kept, lost, voided, done = await bank.open(100), await bank.open(100), await bank.open(100), await bank.open(100)
    await bank.settle(done, 30)
    endings = [posting(kept, "settle", 60, 100), posting(lost, "settle", 70, 100), posting(voided, "void", 0, 100)]
    epoch = await builder.begin()
    (name,) = await bank.holds._pipeline.execute("KEYS", f"*:hold:{lost}")
    await bank.holds._pipeline.execute("DEL", name)
    await bank.holds._pipeline.execute("ZREM", name.decode().split(":")[0] + ":leases", lost)
    for _ in range(3):
        await bank.holds.reassert(
            "w", builder.shard, epoch=epoch, holds=[], endings=[*endings, posting(done, "settle", 30, 100)], is_all=True
        )
    assert await _events(bank, builder) == [
        (done, "settle", 30, 1),
        (kept, "settle", 60, 0),
        (lost, "settle", 70, 0),
        (voided, "void", 0, 0),
    ]
    await builder.finish(epoch, charged=160)
    assert await bank.balance() == (840, 0, 0, 0)
    for hold in (kept, lost, voided):
        assert await bank.settle(hold, 60) is EndResult.ALREADY


async def test_a_late_ending_ends_its_hold_in_an_open_shard(bank: Bank, builder: Builder) -> None:
    open_, unknown, cut = await bank.open(100), bank.id(), bank.id()
    granted(await bank.admit(cut))  # its amend was lost
    endings = [posting(open_, "settle", 60, 100), posting(unknown, "settle", 70, 100), posting(cut, "settle", 80, 100)]
    for _ in range(2):
        await bank.holds.reassert("w", builder.shard, epoch=builder.opened, holds=[], endings=endings, is_all=True)
    assert await _events(bank, builder) == [(open_, "settle", 60, 1), (unknown, "settle", 70, 0), (cut, "settle", 80, 0)]
    assert await bank.balance() == (940, 0, 0, 0), "what came past Redis is a credit of the ledger's"


async def test_what_the_reaper_ended_too_low_is_made_up(bank: Bank, builder: Builder) -> None:
    hold = await bank.open(100)
    await ShardClock(bank.holds._pipeline, bank.holds).pass_by(2 * LEASE_MS + 4_000)
    epoch = await builder.begin()
    for charge in (60, 60, 40):
        ending = posting(hold, "settle", charge, 100)
        await bank.holds.reassert("w", builder.shard, epoch=epoch, holds=[], endings=[ending], is_all=True)
    assert await _events(bank, builder) == [(hold, "expire", 0, 1), (hold, "settle", 60, 0)]
    await builder.finish(epoch, charged=60)


@pytest.mark.parametrize("period", ["none", "day", "month"])
async def test_budgets_are_restored_with_what_is_held(bank: Bank, builder: Builder, period: str) -> None:
    fields = {"budget_nanos": "100", "budget_period": period, "budget_id": "line"}
    await bank.key(version=5, **fields)
    held, lost = await bank.open(40), await bank.open(20)
    if period != "none":
        await builder.lose()
    epoch = await builder.begin()
    await bank.holds.reassert(
        "w", builder.shard, epoch=epoch, holds=[reassertion(held, 40), reassertion(lost, 20)], endings=[], is_all=True
    )
    await builder.finish(epoch, fields=fields, spent=30)
    over, fits = bank.id(), bank.id()
    granted(await bank.admit(over))
    assert denied(await bank.amend(over, 11)).reason is DenyReason.KEY_BUDGET
    granted(await bank.admit(fits))
    granted(await bank.amend(fits, 10))
    await bank.settle(held, 1)
    await bank.void(lost)
    granted(await bank.amend(over, 59))


async def test_limits_survive_in_what_is_counted_from_holds(bank: Bank, builder: Builder) -> None:
    await bank.open(1)
    await builder.lose()
    await builder.finish(await builder.begin(), frozen=True)
    assert denied(await bank.admit(bank.id())).reason is DenyReason.FROZEN
    assert not await bank.holds.install_payer("anna", version=9, total_nanos=5, available_nanos=5, credit_nanos=5)
    assert await bank.holds.set_frozen("anna", version=2, frozen=False)
    granted(await bank.admit(bank.id()))


@pytest.mark.parametrize("cursor", ["0-0", "5-3", "9999999999999-7"])
async def test_ids_of_events_grow_whatever_was_lost(bank: Bank, builder: Builder, cursor: str) -> None:
    await bank.void(await bank.open(1))
    for is_lost in (False, True):
        if is_lost:
            await builder.lose()
        epoch = await builder.begin(cursor=cursor)
        assert await bank.holds.waiting(builder.shard) == (0 if is_lost else 1), "nothing is lost, and nothing added"
        await builder.finish(epoch)
        await bank.void(await bank.open(1))
        events = await RedisEventStream(bank.holds._pipeline).read({builder.shard: cursor}, count=9, block_ms=0)
        assert [event.epoch for event in events][-1] == epoch, "the ledger reads on from its cursor"


async def test_a_full_redis_is_rebuilt(bank: Bank, builder: Builder) -> None:
    hold = await bank.open(400)
    await bank.holds._pipeline.execute("CONFIG", "SET", "maxmemory", "1")
    try:
        epoch = await builder.begin(cursor="9999999999999-7")
        ending = posting(bank.id(), "settle", 1, 1)
        await bank.holds.reassert("w", builder.shard, epoch=epoch, holds=[reassertion(bank.id(), 7)], endings=[ending], is_all=True)
        await builder.finish(epoch, charged=1)
        assert await bank.settle(hold, 5) is EndResult.ENDED
    finally:
        await bank.holds._pipeline.execute("CONFIG", "SET", "maxmemory", "0")
    assert await bank.balance() == (987, 7, 0, 1)


async def test_any_number_of_holds_is_asserted_and_counted(bank: Bank, builder: Builder) -> None:
    holds = [reassertion(bank.id(), 1) for _ in range(700)]
    await builder.lose()
    epoch = await builder.begin()
    await bank.holds.reassert("w", builder.shard, epoch=epoch, holds=holds, endings=[], is_all=True)
    assert len(await bank.holds.count(builder.shard, epoch=epoch)) == 700
    await builder.finish(epoch)
    assert await bank.balance() == (300, 700, 0, 700)
