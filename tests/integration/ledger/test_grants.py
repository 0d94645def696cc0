"""Deposits, corrections, credit lines: once, versioned, audited."""

from __future__ import annotations

import asyncio

import pytest
from ledger_invariants import ledger_faults

from extproc.errors import UsageError
from extproc.ledger.port import EventType


async def test_a_deposit_is_money_event_entries_and_version(bench):
    payer = await bench.account(0)
    granted = await bench.ledger.grant(bench.grant(payer, 500, provider="stripe", reference="pi_1"))
    assert granted.fresh
    assert (granted.balance.balance_nanos, granted.balance.version, granted.balance.credited_total) == (500, 1, 500)
    assert bench.sql("SELECT method, payment_id, amount, status FROM topups") == [("stripe", "pi_1", 500, "paid")]
    assert bench.sql("SELECT kind, name, amount FROM entries ORDER BY line") == [("customer", "", 500), ("clearing", "stripe", -500)]
    assert bench.sql("SELECT actor, action, subject FROM audit") == [("test", "deposit", payer)]
    assert ledger_faults(bench.dsn) == []


async def test_the_same_deposit_again_is_nothing(bench):
    payer = await bench.account(0)
    grant = bench.grant(payer, 500)
    results = await asyncio.gather(*(bench.ledger.grant(grant) for _ in range(4)))
    assert sorted(result.fresh for result in results) == [False, False, False, True]
    assert len({result.event_id for result in results}) == 1
    assert bench.count("billing_events") == 1


async def test_a_payment_told_twice_is_one_deposit(bench):
    payer = await bench.account(0)
    results = [await bench.ledger.grant(bench.grant(payer, 500, provider="stripe", reference="pi_1")) for _ in range(2)]
    assert [result.fresh for result in results] == [True, False]
    assert results[1].balance.balance_nanos == 500
    with pytest.raises(UsageError):
        await bench.ledger.grant(bench.grant(payer, 600, provider="stripe", reference="pi_1"))


async def test_a_correction_may_go_below_zero_and_needs_a_reason(bench):
    payer = await bench.account(100)
    down = bench.grant(payer, -150, event_type=EventType.CORRECTION, provider="correction", reason="booked twice")
    assert (await bench.ledger.grant(down)).balance.balance_nanos == -50
    assert ledger_faults(bench.dsn) == []
    with pytest.raises(AssertionError):
        bench.grant(payer, -150, event_type=EventType.CORRECTION)


async def test_nobody_has_no_account(bench):
    with pytest.raises(UsageError):
        await bench.ledger.grant(bench.grant("00000000-0000-7000-8000-000000000000", 5))
    assert await bench.ledger.balance("00000000-0000-7000-8000-000000000000") is None


async def test_a_credit_line_is_a_version(bench):
    payer = await bench.account(0)
    for _ in range(2):
        balance = await bench.ledger.set_credit(payer, 70, actor="test", reason="postpaid")
        assert (balance.credit_nanos, balance.version) == (70, 1)
    assert bench.count("audit", "action = 'credit_line'") == 1


async def test_confirmations_never_go_backwards(bench):
    payer = await bench.account(0)
    for amount in (1, 2, 3):
        await bench.ledger.grant(bench.grant(payer, amount))
    assert [one.payer_id for one in await bench.ledger.undelivered(after=None, limit=9)] == [payer]
    for version in (2, 1):
        await bench.ledger.confirm(payer, version, epoch="")
        assert (await bench.ledger.balance(payer)).redis_version == 2
    await bench.ledger.confirm(payer, 99, epoch="")
    assert (await bench.ledger.balance(payer)).is_delivered
    assert await bench.ledger.undelivered(after=None, limit=9) == []


async def test_an_old_master_confirms_nothing(bench):
    """The shard has been opened elsewhere since: what was brought here must be brought there."""
    payer = await bench.account(1)
    bench.sql("INSERT INTO shard_epochs SELECT shard_of(%s), 4, 'b.4', 'open'", payer)
    await bench.ledger.confirm(payer, 1, epoch="a.3")
    assert [one.payer_id for one in await bench.ledger.undelivered(after=None, limit=9)] == [payer]
    await bench.ledger.confirm(payer, 1, epoch="b.4")
    assert await bench.ledger.undelivered(after=None, limit=9) == []


async def test_undelivered_balances_come_page_by_page(bench):
    payers = sorted([await bench.account(1) for _ in range(5)])
    first = await bench.ledger.undelivered(after=None, limit=3)
    rest = await bench.ledger.undelivered(after=first[-1].payer_id, limit=3)
    assert [one.payer_id for one in first + rest] == payers
