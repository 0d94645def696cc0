"""Refunds of usage, corrections, write-offs: bounded under the payer's lock, once, audited, told to Redis by version."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ledger_invariants import ledger_faults
from refunder import refund

from extproc.errors import UsageError
from extproc.ledger.port import EventType, Grant

REFUNDER = Path(__file__).with_name("refunder.py")


def process(*words: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([sys.executable, str(REFUNDER), *map(str, words)], stdout=subprocess.PIPE, text=True, env=env)


async def charged(bench: Any, payer: str, output: int = 10, **fields: Any) -> str:
    """A request that cost 5 + 2 × ``output``."""
    posting = bench.posting(payer, output, **fields)
    await bench.ledger.post([posting])
    return posting.hold_id


def back(bench: Any, payer: str, request: str, amount: int, **fields: Any) -> Grant:
    return bench.grant(payer, amount, event_type=EventType.USAGE_REFUND, provider="m", of_id=request, reason="slow", **fields)


async def test_a_refund_is_money_event_entries_row_version_and_audit(bench):
    payer = await bench.account(1_000)
    request = await charged(bench, payer)
    before = await bench.ledger.balance(payer)
    granted = await bench.ledger.grant(back(bench, payer, request, 10))
    after = granted.balance
    assert (granted.fresh, after.balance_nanos) == (True, 1_000 - 25 + 10)
    assert (after.version, after.credited_total) == (before.version + 1, before.credited_total + 10)
    lines = bench.sql("SELECT kind, name, amount FROM entries WHERE event_id = %s ORDER BY line", granted.event_id)
    assert lines == [("customer", "", 10), ("revenue", "m", -10)]
    assert bench.sql("SELECT cost, refunded_nanos FROM requests") == [(25, 10)]
    audit = bench.sql("SELECT actor, subject, reason, detail FROM audit WHERE action = 'usage_refund'")
    assert audit == [("test", payer, "slow", {"event": granted.event_id, "amount_nanos": 10, "request": request})]
    assert ledger_faults(bench.dsn) == []


async def test_no_more_than_is_left_of_the_charge(bench):
    payer = await bench.account(1_000)
    request = await charged(bench, payer)
    await bench.ledger.grant(back(bench, payer, request, 20))
    with pytest.raises(UsageError, match=r"there is left 0\.000000005"):
        await bench.ledger.grant(back(bench, payer, request, 6))
    await bench.ledger.grant(back(bench, payer, request, 5))
    with pytest.raises(UsageError):
        await bench.ledger.grant(back(bench, payer, request, 1))
    assert (await bench.ledger.charge(request)).left_nanos == 0
    assert (await bench.ledger.balance(payer)).balance_nanos == 1_000
    assert ledger_faults(bench.dsn) == []


async def test_the_same_refund_again_is_nothing_and_another_under_its_id_is_refused(bench):
    payer = await bench.account(1_000)
    request, other = await charged(bench, payer), await charged(bench, payer)
    one = back(bench, payer, request, 10)
    results = await asyncio.gather(*(bench.ledger.grant(one) for _ in range(4)))
    assert sorted(result.fresh for result in results) == [False, False, False, True]
    for different in (back(bench, payer, request, 11, id=one.id), back(bench, payer, other, 10, id=one.id)):
        with pytest.raises(UsageError, match="booked before"):
            await bench.ledger.grant(different)
    assert (await bench.ledger.charge(request)).refunded_nanos == 10
    assert ledger_faults(bench.dsn) == []


async def test_what_was_never_charged_or_is_anothers_is_not_refunded(bench):
    payer, stranger = await bench.account(1_000), await bench.account(1_000)
    void, request = await charged(bench, payer, kind="void"), await charged(bench, payer)
    for grant in (
        back(bench, payer, void, 1),
        back(bench, stranger, request, 1),
        back(bench, payer, "00000000-0000-7000-8000-000000000000", 1),
    ):
        with pytest.raises(UsageError):
            await bench.ledger.grant(grant)
    assert bench.count("billing_events", "event_type = 'usage_refund'") == 0


async def test_what_the_operator_bore_himself_is_not_refunded(bench):
    """A late charge of 25 found 10: the payer can get back 10."""
    payer = await bench.account(10)
    request = await charged(bench, payer, past_redis=True)
    assert (await bench.ledger.charge(request)).charged_nanos == 10
    with pytest.raises(UsageError):
        await bench.ledger.grant(back(bench, payer, request, 11))
    await bench.ledger.grant(back(bench, payer, request, 10))
    assert ledger_faults(bench.dsn) == []


async def test_an_adjust_after_a_refund(bench):
    """An expire of 15 is given back, then the settle of 25 comes: the difference is charged, and can be given back as well."""
    payer = await bench.account(1_000)
    hold = await charged(bench, payer, 5, kind="expire")
    await bench.ledger.grant(back(bench, payer, hold, 15))
    await bench.ledger.post([bench.posting(payer, 10, hold_id=hold, past_redis=True)])
    charge = await bench.ledger.charge(hold)
    assert (charge.charged_nanos, charge.refunded_nanos, charge.left_nanos) == (25, 15, 10)
    await bench.ledger.grant(back(bench, payer, hold, 10))
    assert (await bench.ledger.balance(payer)).balance_nanos == 1_000
    assert ledger_faults(bench.dsn) == []


async def test_refunds_of_two_processes_and_a_task_never_exceed_the_charge(bench):
    payer = await bench.account(10_000)
    request = await charged(bench, payer, 500, cap=2_000)  # 1005
    processes = [process(bench.dsn, request, 10, 80, "") for _ in range(2)]
    await refund(bench.dsn, request, 10, 40, "")
    said = [line for one in processes for line in (await asyncio.to_thread(one.communicate))[0].split()]
    assert [one.returncode for one in processes] == [0, 0]
    assert len(said) == 160
    assert (await bench.ledger.charge(request)).refunded_nanos == 1_000, "100 times 10 of 1005"
    assert (await bench.ledger.balance(payer)).balance_nanos == 10_000 - 5
    assert bench.count("billing_events", "event_type = 'usage_refund'") == 100
    assert ledger_faults(bench.dsn) == []


async def test_killed_anywhere_and_told_again_each_is_booked_once(bench):
    payer = await bench.account(10_000)
    request = await charged(bench, payer, 500, cap=2_000)
    chance = random.Random(7)
    for _ in range(3):
        with process(bench.dsn, request, 10, 60, "ticket") as one:
            for _ in range(chance.randrange(1, 25)):
                one.stdout.readline()
            one.kill()
        assert ledger_faults(bench.dsn) == []
    booked = bench.count("billing_events", "event_type = 'usage_refund'")
    assert 0 < booked < 60
    await refund(bench.dsn, request, 10, 60, "ticket")
    assert (await bench.ledger.charge(request)).refunded_nanos == 600
    assert bench.count("audit", "action = 'usage_refund'") == 60
    assert ledger_faults(bench.dsn) == []


async def test_a_debt_is_written_off_and_no_more_than_it(bench):
    payer = await bench.account(100)

    def off(amount: int) -> Grant:
        return bench.grant(payer, amount, event_type=EventType.WRITEOFF, provider="writeoff", reason="uncollectable")

    with pytest.raises(UsageError, match=r"the account owes 0\.00$"):
        await bench.ledger.grant(off(1))
    await bench.ledger.grant(bench.grant(payer, -150, event_type=EventType.CORRECTION, provider="correction", reason="booked twice"))
    with pytest.raises(UsageError):
        await bench.ledger.grant(off(51))
    results = await asyncio.gather(*(bench.ledger.grant(off(20)) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, UsageError) for result in results) == 2
    assert (await bench.ledger.grant(off(10))).balance.balance_nanos == 0
    assert bench.sql("SELECT sum(amount) FROM entries WHERE kind = 'loss' AND name = 'writeoff'") == [(-50,)]
    assert ledger_faults(bench.dsn) == []


@pytest.mark.parametrize(
    ("event_type", "may"),
    [
        (EventType.PAYOUT, True),
        (EventType.DISPUTE_OPENED, True),
        (EventType.CORRECTION, True),
        (EventType.BONUS_EXPIRY, False),
    ],
)
async def test_who_may_leave_a_balance_below_its_line(bench, event_type, may):
    payer = await bench.account(100)
    await bench.ledger.set_credit(payer, 20, actor="test", reason="postpaid")
    sign = -1 if event_type is EventType.CORRECTION else 1
    await bench.ledger.grant(bench.grant(payer, sign * 120, event_type=event_type, provider="x", reason="r"))
    one_more = bench.grant(payer, sign, event_type=event_type, provider="x", reason="r")
    if may:
        assert (await bench.ledger.grant(one_more)).balance.balance_nanos == -21
    else:
        with pytest.raises(UsageError):
            await bench.ledger.grant(one_more)
        assert (await bench.ledger.balance(payer)).balance_nanos == -20
    assert ledger_faults(bench.dsn) == []


async def test_a_lowered_line_leaves_the_account_below_it(bench):
    payer = await bench.account(0)
    await bench.ledger.set_credit(payer, 50, actor="test", reason="postpaid")
    await charged(bench, payer, past_redis=True)
    assert (await bench.ledger.set_credit(payer, 0, actor="test", reason="no more")).balance_nanos == -25
    assert ledger_faults(bench.dsn) == []


async def test_a_dispute_from_its_opening_to_its_loss(bench):
    """What was awaited from the provider is not any more, and nobody but the customer has paid."""
    payer = await bench.account(0)
    for event_type in (EventType.DEPOSIT, EventType.DISPUTE_OPENED, EventType.DISPUTE_LOST):
        await bench.ledger.grant(bench.grant(payer, 100, event_type=event_type, provider="stripe"))
    sums = "SELECT kind, sum(amount) FROM entries GROUP BY kind ORDER BY kind"
    assert bench.sql(sums) == [("clearing", 0), ("customer", 0), ("disputes", 0)]
    assert ledger_faults(bench.dsn) == []


async def test_beyond_what_a_balance_can_hold(bench):
    payer = await bench.account(0)
    for _ in range(2):
        await bench.ledger.grant(bench.grant(payer, 2 * 10**18))
    with pytest.raises(UsageError, match="beyond what a balance can hold"):
        await bench.ledger.grant(bench.grant(payer, 1))
