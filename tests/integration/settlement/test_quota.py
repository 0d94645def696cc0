"""Free tokens over both stores: given once, used before money, booked once whatever way their ending comes, back when they are not used."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import psycopg
import pytest
from ledger_invariants import ledger_faults
from msgspec import structs
from test_rebuild import posted, settler, until_open
from town import CAP, Town, until

from extproc.errors import StoreRefused, UsageError
from extproc.money.hold import Checkpoint, Denied, DenyReason, Ending, EndKind, EndResult
from extproc.money.posting import Posting
from extproc.money.usage import NO_QUOTA, Quota
from extproc.stores.shards import shard_of, tag_of

SMALL = Quota(input_tokens=5, output_tokens=60)
Both = tuple[int, int]


async def tokens(town: Town, payer: str) -> tuple[Both, Both, Both]:
    """In the ledger; in Redis: there, and held."""
    balance, view = await town.ledger.balance(payer), await town.holds.view(payer)
    assert balance is not None
    assert view is not None
    return (balance.free_input, balance.free_output), view.quota.both, view.held_quota.both


def past_redis(ending: Ending, kind: str = "settle") -> Posting:
    """As an outbox brings it."""
    return Posting(
        shard_of(ending.payer_id), "", kind, ending.hold_id, ending.payer_id, ending.key_id, ending.charge_nanos, ending.reserved_nanos,
        "", 0, 1_760_000_000_000, ending.row, *ending.quota.both,
    )  # fmt: skip


async def post_all(town: Town) -> None:
    leader = town.leader()
    poster = town.poster(leadership=leader)

    async def is_empty() -> bool:
        await poster.step()
        return not await town.waiting()

    await until(is_empty)
    await leader.release()


async def its_lease_runs_out(town: Town, payer: str, hold: str) -> None:
    tag, shard = tag_of(payer), shard_of(payer)
    await town.pipeline.execute("ZADD", f"{tag}:leases", 1, hold)
    await town.pipeline.execute("HSET", f"{tag}:shard", "reaped_epoch", (await town.holds.states())[shard].epoch)
    seconds, _ = await town.pipeline.execute("TIME")
    await town.pipeline.execute("HSET", f"{tag}:shard", "reaped", int(seconds) * 1_000, "quiet", 0)
    assert await town.holds.expire(shard) == [hold]


async def test_given_once_and_brought_once(town: Town):
    payer, _ = await town.customer(0)
    give = {"input_tokens": 100, "output_tokens": 0, "reason": "r", "actor": "test"}
    for fresh in (True, False):
        receipt = await town.deposits.grant_quota(payer, reference="spring", **give)
        assert (receipt.fresh, receipt.is_delivered) == (fresh, True)
    assert await tokens(town, payer) == ((100, 0), (100, 0), (0, 0))
    await town.grant_quota(payer, 1, 7)
    assert await tokens(town, payer) == ((101, 7), (101, 7), (0, 0))
    with pytest.raises(UsageError, match="booked before"):
        await town.deposits.grant_quota(payer, reference="spring", **(give | {"output_tokens": 5}))
    for wrong in ({"input_tokens": 0}, {"input_tokens": -1}, {"reason": " "}, {"input_tokens": 10**16}):
        with pytest.raises(UsageError):
            await town.deposits.grant_quota(payer, **(give | wrong))
    assert town.count("billing_events", "event_type = 'quota_grant' AND amount = 0") == 2
    assert town.count("audit", "action = 'quota_grant' AND reason = 'r'") == 2
    assert ledger_faults(town.dsn) == []


async def test_what_redis_has_missed_the_sweep_brings(town: Town, monkeypatch: pytest.MonkeyPatch):
    async def away(*_: object, **__: object) -> bool:
        raise StoreRefused("away")

    payer, _ = await town.customer(1_000)
    with monkeypatch.context() as patch:
        patch.setattr(town.holds, "credit", away)
        receipt = await town.deposits.grant_quota(payer, input_tokens=5, output_tokens=6, reason="r", actor="test")
    assert not receipt.is_delivered
    assert await tokens(town, payer) == ((5, 6), (0, 0), (0, 0))
    for _ in range(2):
        await town.sweep().step()
    assert await tokens(town, payer) == ((5, 6), (5, 6), (0, 0))
    with psycopg.connect(town.dsn, autocommit=True) as connection:  # as if Redis had never heard of it
        connection.execute("UPDATE balances SET redis_version = NULL")
    await town.pipeline.execute("DEL", f"{tag_of(payer)}:payer:{payer}")
    await town.sweep().step()
    assert await tokens(town, payer) == ((5, 6), (5, 6), (0, 0))


async def test_a_quota_pays_before_money_and_what_is_left_comes_back(town: Town):
    """60 tokens of output were held for and 10 made: 50 and all of the money are there again. Beyond the quota money pays."""
    payer, key = await town.customer(CAP)
    await town.grant_quota(payer, 7, 100)
    hold = await town.hold(payer, key, quota=SMALL)
    assert await tokens(town, payer) == ((7, 100), (2, 40), (5, 60))
    assert await town.at_rest(payer) == (CAP, CAP, 0)
    assert await town.holds.end(town.settle(hold, payer, key, quota=SMALL)) is EndResult.ENDED
    assert await tokens(town, payer) == ((7, 100), (2, 90), (0, 0))
    await post_all(town)
    assert await tokens(town, payer) == ((2, 90), (2, 90), (0, 0))
    paid = await town.hold(payer, key, quota=SMALL)  # only 2 tokens of input are left: money pays for everything
    assert (await town.at_rest(payer))[1:] == (0, CAP)
    await town.holds.end(town.settle(paid, payer, key))
    await post_all(town)
    assert await town.at_rest(payer) == (CAP - 25, CAP - 25, 0)
    assert await tokens(town, payer) == ((2, 90), (2, 90), (0, 0))
    assert ledger_faults(town.dsn) == []


async def test_an_entry_needs_no_money_while_there_is_quota(town: Town):
    payer, key = await town.customer(0)
    denied = await town.try_to_hold(payer, key)
    assert isinstance(denied, Denied)
    await town.grant_quota(payer, 5, 60)
    hold = await town.hold(payer, key, quota=SMALL)
    denied = await town.try_to_hold(payer, key, quota=SMALL)
    assert isinstance(denied, Denied)
    assert denied.reason is DenyReason.HELD, "the other one may give some back"
    await town.holds.end(town.settle(hold, payer, key, 60, quota=SMALL))
    denied = await town.try_to_hold(payer, key, quota=SMALL)
    assert isinstance(denied, Denied)
    assert denied.reason is DenyReason.INSUFFICIENT


@pytest.mark.parametrize(("given", "made", "money", "expected"), [(37, 10_000, 0, 7), (10_000, 430, 0, 7), (37, 10_000, 3 * CAP, 10)])
async def test_of_many_at_once_as_many_are_served_as_there_are_tokens(town: Town, given: int, made: int, money: int, expected: int):
    """17, of tokens; who finds none pays with money, as far as there is any."""
    payer, key = await town.customer(money)
    await town.grant_quota(payer, given, made)
    held = [hold for hold in await asyncio.gather(*(town.try_to_hold(payer, key, quota=SMALL) for _ in range(30))) if isinstance(hold, str)]
    assert len(held) == expected
    (_, free, taken), (_, available, reserved) = await tokens(town, payer), await town.at_rest(payer)
    assert taken == (7 * 5, 7 * 60)
    assert (free[0] + taken[0], free[1] + taken[1]) == (given, made)
    assert (available, reserved) == (0, money)


@pytest.mark.parametrize("redis_first", [True, False])
async def test_the_stream_and_the_outbox_book_it_once(town: Town, redis_first: bool):
    payer, key = await town.customer(CAP)
    await town.grant_quota(payer, 7, 100)
    hold = await town.hold(payer, key, quota=SMALL)
    ending = town.settle(hold, payer, key, quota=SMALL)
    await town.holds.end(ending)
    first, second = (post_all(town), town.ledger.post([past_redis(ending)]))[:: 1 if redis_first else -1]
    await first
    await second
    await town.sweep().step()
    await post_all(town)
    assert await tokens(town, payer) == ((2, 90), (2, 90), (0, 0))
    assert town.count("billing_events", "free_input = 5 AND free_output = 10") == 1
    assert ledger_faults(town.dsn) == []


async def test_it_expires_at_its_checkpoint_and_a_late_settle_is_adjusted(town: Town):
    """Tokens that others took meanwhile are the operator's loss; the row says what was used."""
    payer, key = await town.customer(0)
    await town.grant_quota(payer, 10, 60)
    hold = await town.hold(payer, key, quota=SMALL)
    at_ten = town.settle(hold, payer, key, 10, quota=SMALL)
    for quota in (at_ten.quota, Quota(input_tokens=5, output_tokens=9), NO_QUOTA, Quota(input_tokens=5, output_tokens=61)):
        # What is less, or more than there is, is nobody's checkpoint.
        await town.holds.beat([Checkpoint(hold_id=hold, owner=hold, payer_id=payer, charge_nanos=0, row=at_ten.row, quota=quota)])
    await its_lease_runs_out(town, payer, hold)
    assert await tokens(town, payer) == ((10, 60), (5, 50), (0, 0))
    await post_all(town)
    assert await tokens(town, payer) == ((5, 50), (5, 50), (0, 0))
    await town.serve(payer, key, 30, quota=Quota(input_tokens=5, output_tokens=30))
    settle = town.settle(hold, payer, key, 50, quota=SMALL)
    for _ in range(2):
        assert await town.holds.end(settle) is EndResult.ALREADY
    await post_all(town)
    await town.ledger.post([past_redis(settle)])
    await town.sweep().step()
    assert await tokens(town, payer) == ((0, 0), (0, 0), (0, 0))
    found = await town.ledger.explain(hold)
    assert found is not None
    assert (found.request["free_input"], found.request["free_output"], found.request["cost"]) == (5, 50, 0)
    lines = Counter[tuple[str, str]]()
    for entry in found.entries:
        lines[entry["kind"], entry["unit"]] += entry["amount"]
    assert (lines["customer", "free_output"], lines["loss", "free_output"], lines["revenue", "free_output"]) == (-30, -20, 50)
    assert ledger_faults(town.dsn) == []


@pytest.mark.parametrize("beside", [0, 10])
@pytest.mark.parametrize("first", ["redis", "outbox", "lease"])
async def test_taken_by_an_amend_whose_answer_was_lost(town: Town, first: str, beside: int):
    """The request does not know of it and is served on credit. It pays with money; the tokens are there again, whoever ends the hold."""
    payer, key = await town.customer(CAP)
    await town.grant_quota(payer, 7, 100)
    hold = await town.hold(payer, key, quota=SMALL, beside=beside)
    assert await tokens(town, payer) == ((7, 100), (2, 40), (5, 60))
    settle = town.settle(hold, payer, key)
    lent = json.dumps(json.loads(settle.row) | {"policies": ["stores_away=credit"]}).encode()
    settle = structs.replace(settle, reserved_nanos=0, row=lent)
    assert settle.charge_nanos > beside
    checkpoint = Checkpoint(hold_id=hold, owner=hold, payer_id=payer, charge_nanos=5, row=settle.row)
    await town.holds.beat([checkpoint])
    if first == "lease":
        await its_lease_runs_out(town, payer, hold)
    if first == "outbox":
        await town.ledger.post([past_redis(settle)])
    assert await town.holds.end(settle) is (EndResult.ALREADY if first == "lease" else EndResult.ENDED)
    assert (await tokens(town, payer))[1:] == ((7, 100), (0, 0)), "at once"
    await post_all(town)
    await town.ledger.post([past_redis(settle)])
    await town.sweep().step()
    assert await town.at_rest(payer) == (CAP - settle.charge_nanos, CAP - settle.charge_nanos, 0)
    assert await tokens(town, payer) == ((7, 100), (7, 100), (0, 0))
    assert (town.count("conflicts"), town.count("requests"), town.count("requests", "loss_nanos > 0")) == (0, 1, 0)
    assert ledger_faults(town.dsn) == []


async def test_a_refund_gives_back_money_alone(town: Town):
    payer, key = await town.customer(CAP)
    await town.grant_quota(payer, 7, 100)
    hold = await town.serve(payer, key)
    free = await town.serve(payer, key, quota=SMALL)
    await post_all(town)
    await town.deposits.refund(await town.ledger.charge(hold), 25, reason="r", actor="test")
    assert (await town.ledger.charge(free)).left_nanos == 0
    assert await tokens(town, payer) == ((2, 90), (2, 90), (0, 0))
    assert await town.at_rest(payer) == (CAP, CAP, 0)


async def test_a_void_gives_all_of_it_back(town: Town):
    payer, key = await town.customer(0)
    await town.grant_quota(payer, 5, 60)
    hold = await town.hold(payer, key, quota=SMALL)
    void = Ending(hold_id=hold, owner=hold, payer_id=payer, key_id=key, kind=EndKind.VOID, charge_nanos=0, tokens=0, row=b"{}")
    assert await town.holds.end(void) is EndResult.ENDED
    assert (await tokens(town, payer))[1:] == ((5, 60), (0, 0))


async def test_tokens_that_were_used_when_redis_was_lost_are_gone(town: Town):
    """Settled, acknowledged, and lost with the stream: the outbox has it, and a rebuild knows no more of Redis than the ledger."""
    async with settler(town):
        await until_open(town)
        payer, key = await town.customer(0)
        await town.grant_quota(payer, 5, 60)
        hold = await town.hold(payer, key, quota=SMALL)
        ending = town.settle(hold, payer, key, quota=SMALL)
        await town.ledger.post([past_redis(ending)])
        await town.pipeline.execute("FLUSHALL")
        await until_open(town, above=2)
        assert await tokens(town, payer) == ((0, 50), (0, 50), (0, 0))
        assert await town.holds.end(ending) is EndResult.UNKNOWN
        await posted(town)
    assert ledger_faults(town.dsn) == []
