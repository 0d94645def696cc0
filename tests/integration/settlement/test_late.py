"""Money that was promised twice: who prepaid 1,000 pays 1,000, and the rest is the operator's loss. A debt is what a named event leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from ledger_invariants import ledger_faults
from test_rebuild import OPENED, Worker, settler, until_open
from town import CAP, new_id, until

from extproc.accounts.registry import Scopes
from extproc.ledger.audit import PostgresAudit
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import Denied, DenyReason, EndResult
from extproc.money.posting import Posting
from extproc.settlement.release import Release
from extproc.stores.shards import shard_of

OUTPUT = 450
CHARGE = 905  # of 450 output tokens


async def expired_and_held_again(town: Any) -> tuple[str, str, str, str]:
    """A request whose hold is gone runs on, and what it gave back is held by another one."""
    payer, key = await town.customer(CAP)
    late = await town.hold(payer, key)
    await Release(town.holds, PostgresAudit(town.database), new_id=new_id).release(late, actor="ada", reason="it hangs")
    return payer, key, late, await town.hold(payer, key)


@pytest.mark.parametrize("order", [("late", "held"), ("held", "late")], ids=" then ".join)
@pytest.mark.parametrize("way", ["by Redis", "past it"])
@pytest.mark.parametrize("is_posted_between", [True, False])
async def test_both_are_settled(town: Any, order: tuple[str, ...], way: str, is_posted_between: bool):
    payer, key, late, held = await expired_and_held_again(town)
    poster = town.poster()
    for name in order:
        ending = town.settle(late if name == "late" else held, payer, key, OUTPUT)
        if name == "late" and way == "past it":
            await poster.step()
            await town.ledger.post(
                [Posting(shard_of(payer), "", "settle", late, payer, key, CHARGE, CAP, "", 0, 1_760_000_000_000, ending.row)]
            )
        else:
            await town.holds.end(ending)
        if is_posted_between:
            await poster.step()
            await town.sweep().step()
    await poster.step()
    await town.sweep().step()
    balance, available, held_nanos = await town.at_rest(payer)
    assert (available, held_nanos) == (balance, 0)
    assert balance >= 0, "a debt that no named event has made"
    assert balance == 0
    assert town.count("entries", "kind = 'loss' AND name = 'late' AND amount = -810") == 1
    assert town.count("entries", f"kind = 'revenue' AND amount = {CHARGE}") == 2
    assert ledger_faults(town.dsn) == []


async def test_a_budget_ends_with_what_came_late(town: Any):
    """After an expiry, and on credit while Redis was away: the ledger takes it, Redis counts it, both the same."""
    payer, _ = await town.customer()
    key = (await town.registry.create_key(payer, name="b", scopes=Scopes(budget_nanos=CAP), actor="t")).id
    late, lent = await town.hold(payer, key), town.settle(new_id(), payer, key, OUTPUT)
    await Release(town.holds, PostgresAudit(town.database), new_id=new_id).release(late, actor="ada", reason="it hangs")
    for ending, result in ((town.settle(late, payer, key, OUTPUT), EndResult.ALREADY), (lent, EndResult.UNKNOWN)):
        assert await town.holds.end(ending) is result
    await town.poster().step()
    await town.ledger.post(
        [Posting(shard_of(payer), "", "settle", lent.hold_id, payer, key, CHARGE, 0, "", 0, 1_760_000_000_000, lent.row)]
    )
    await town.sweep().step()
    assert (await town.holds.purse(payer, key)).budget_used_nanos == 2 * CHARGE
    assert town.count("budget_spend", f"nanos = {2 * CHARGE}") == 1
    refused = await town.try_to_hold(payer, key)
    assert isinstance(refused, Denied)
    assert refused.reason is DenyReason.KEY_BUDGET


@pytest.mark.parametrize("cause", ["correction", "lowered line"])
async def test_a_named_cause_leaves_a_debt(town: Any, cause: str):
    """What was set aside is charged, although its money was taken back meanwhile."""
    payer, key = await town.customer(CAP if cause == "correction" else 0)
    await town.deposits.set_credit(payer, 0 if cause == "correction" else CAP, actor="t", reason="r")
    hold = await town.hold(payer, key)
    if cause == "correction":
        await town.deposits.correct(payer, -CAP, reason="r", actor="t")
    else:
        await town.deposits.set_credit(payer, 0, actor="t", reason="r")
    await town.holds.end(town.settle(hold, payer, key, OUTPUT))
    await town.poster().step()
    await town.sweep().step()
    assert await town.at_rest(payer) == (-CHARGE, -CHARGE, 0)
    assert town.count("entries", "kind = 'loss'") == 0


async def test_what_was_borne_of_an_expiry_stays_borne_when_it_is_adjusted(town: Any):
    """The row says what was paid and what was lost, of both."""
    payer, key = await town.customer(CAP)
    first = await town.hold(payer, key)
    settled = town.settle(first, payer, key, OUTPUT)
    past = Posting(shard_of(payer), "", "expire", first, payer, key, 0, CAP, "", 0, 1_760_000_000_000, settled.row)
    await town.ledger.post([past._replace(charge_nanos=CHARGE)])
    assert (await town.ledger.balance(payer)).balance_nanos == 95
    other = town.settle(new_id(), payer, key, OUTPUT)
    late = past._replace(hold_id=other.hold_id, row=other.row)
    await town.ledger.post([late._replace(charge_nanos=305)])  # 95 are there, 210 are lost
    await town.ledger.post([late._replace(kind="settle", charge_nanos=CHARGE)])  # and 600 more
    with psycopg.connect(town.dsn) as connection:
        row = connection.execute("SELECT cost, loss_nanos FROM requests WHERE id = %s", (other.hold_id,)).fetchone()
    assert row == (95, 810)
    assert town.count("entries", "kind = 'loss' AND name = 'late'") == 2
    assert ledger_faults(town.dsn) == []


async def test_no_amount_of_causes_stops_a_shard(town: Any):
    """Three times all that a balance can hold was taken back within five hours: more than a bigint."""
    payer, key = await town.customer(CAP)
    for _ in range(3):
        await town.deposits.correct(payer, BALANCE_NANOS_MAX - CAP, reason="r", actor="t")
        await town.deposits.correct(payer, CAP - BALANCE_NANOS_MAX, reason="r", actor="t")
        await town.deposits.set_credit(payer, BALANCE_NANOS_MAX, reason="r", actor="t")
        await town.deposits.set_credit(payer, 0, reason="r", actor="t")
    hold = await town.hold(payer, key)
    await town.deposits.correct(payer, -CAP, reason="r", actor="t")
    await town.holds.end(town.settle(hold, payer, key, OUTPUT))
    await town.poster().step()
    await town.sweep().step()
    assert await town.at_rest(payer) == (-CHARGE, -CHARGE, 0)
    assert town.count("conflicts") == 0


async def test_a_hold_that_no_rebuild_heard_of_comes_back(town: Any):
    """A worker was silent while Redis was lost and built again; what it held is held by somebody else when it speaks."""
    payer, key = await town.customer(CAP)
    silent = Worker(town)
    late = await town.hold(payer, key)
    for hold in await town.holds.open_holds():
        silent.holds(hold)
    async with settler(town):
        await until_open(town)
        await town.pipeline.execute("FLUSHALL")
        await until_open(town, above=OPENED)
        held = await town.hold(payer, key)
        works = asyncio.create_task(silent.works())
        try:
            await until(lambda: _holds(town, payer, 2))
        finally:
            works.cancel()
        for hold in (held, late):
            assert await town.holds.end(town.settle(hold, payer, key, OUTPUT)) is EndResult.ENDED
        await until(lambda: _rests(town, payer, CAP - 2 * CHARGE + 810))
    await town.sweep().step()
    assert await town.at_rest(payer) == (0, 0, 0)
    assert town.count("entries", "kind = 'loss' AND name = 'late' AND amount = -810") == 1
    assert ledger_faults(town.dsn) == []


async def _holds(town: Any, payer: str, count: int) -> bool:
    return len(await town.holds.open_holds(payer)) == count


async def _rests(town: Any, payer: str, balance: int) -> bool:
    posted = await town.ledger.balance(payer)
    return posted.balance_nanos == balance and town.count("billing_events", "event_type = 'settle'") == 2
