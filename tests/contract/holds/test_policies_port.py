"""Sandbox, shadow and trust, as the hold store has them: what is granted all the same, what it takes, and how it ends."""

from __future__ import annotations

import asyncio

import pytest
from integration.holds.bank import Bank, denied, granted

from extproc.money.hold import DenyReason, EndResult, Limits


async def test_a_sandbox_request_takes_no_money_and_counts_its_tokens(bank: Bank) -> None:
    await bank.payer(0)
    hold = bank.id()
    granted(await bank.admit(hold, entry=0))
    granted(await bank.amend(hold, 0, tokens=60, sandbox=100))
    refused = bank.id()
    granted(await bank.admit(refused, entry=0))
    verdict = denied(await bank.amend(refused, 0, tokens=41, sandbox=100))
    assert (verdict.reason, verdict.limit_source) == (DenyReason.SANDBOX_TOKENS, "account")
    assert verdict.retry_after_ms > 0
    assert await bank.settle(hold, 0, tokens=59) is EndResult.ENDED
    granted(await bank.amend(refused, 0, tokens=41, sandbox=100))  # the settle gave one back
    await bank.void(refused)
    assert await bank.balance() == (0, 0, 0, 0)


async def test_many_at_once_stay_below_the_cap_of_the_day(bank: Bank) -> None:
    await bank.payer(0)
    holds = [bank.id() for _ in range(20)]
    for hold in holds:
        granted(await bank.admit(hold, entry=0))
    verdicts = await asyncio.gather(*(bank.amend(hold, 0, tokens=30, sandbox=100) for hold in holds))
    assert sum(hasattr(verdict, "hold_id") for verdict in verdicts) == 3
    for hold in holds:
        await bank.void(hold)


async def test_paid_tokens_are_not_the_sandboxs(bank: Bank) -> None:
    await bank.payer(1_000)
    paid = await bank.open(10, tokens=500)
    sandbox = bank.id()
    granted(await bank.admit(sandbox, entry=0))
    granted(await bank.amend(sandbox, 0, tokens=100, sandbox=100))
    await bank.settle(paid, 10, tokens=1)
    other = bank.id()
    granted(await bank.admit(other, entry=0))
    assert denied(await bank.amend(other, 0, tokens=1, sandbox=100)).reason is DenyReason.SANDBOX_TOKENS
    await bank.void(sandbox)
    await bank.void(other)


@pytest.mark.parametrize(
    ("fields", "options", "reason"),
    [
        ({"revoked": "1"}, {}, DenyReason.KEY_REVOKED),
        ({"expires_ms": "1"}, {}, DenyReason.KEY_EXPIRED),
        ({}, {"account": Limits(requests_per_minute=0)}, DenyReason.REQUESTS_PER_MINUTE),
        ({}, {"limits": Limits(concurrent_requests=0)}, DenyReason.CONCURRENT),
        ({}, {"entry": 1_001}, DenyReason.INSUFFICIENT),
        ({}, {"entry": 1_000}, None),
    ],
)
async def test_what_admit_would_deny_is_granted_in_shadow(bank: Bank, fields: dict, options: dict, reason: DenyReason | None) -> None:
    await bank.payer(1_000, **fields)
    hold = bank.id()
    verdict = granted(await bank.admit(hold, shadow=True, **options))
    assert verdict.would_deny is reason
    assert await bank.balance() == (1_000, 0, 0, 1), "nothing is held, not even softly"
    await bank.void(hold)


async def test_a_frozen_account_would_be_denied(bank: Bank) -> None:
    await bank.payer(1_000)
    await bank.holds.set_frozen("anna", version=1, frozen=True)
    hold = bank.id()
    assert granted(await bank.admit(hold, shadow=True)).would_deny is DenyReason.FROZEN
    await bank.void(hold)


@pytest.mark.parametrize(
    ("fields", "options", "reason", "spendable"),
    [
        ({}, {"would_hold": 1_001}, DenyReason.INSUFFICIENT, 1_000),
        ({}, {"would_hold": 1_000}, None, 1_000),
        ({"budget_nanos": "99"}, {"would_hold": 100}, DenyReason.KEY_BUDGET, 99),
        ({"budget_nanos": "100", "budget_period": "day"}, {"would_hold": 100}, None, 1_000),
        ({}, {"would_hold": 1, "tokens": 9, "account": Limits(tokens_per_minute=8)}, DenyReason.TOKENS_PER_MINUTE, 1_000),
    ],
)
async def test_what_amend_would_deny_is_granted_in_shadow(
    bank: Bank, fields: dict, options: dict, reason: DenyReason | None, spendable: int
) -> None:
    await bank.payer(1_000, **fields)
    for _ in range(2):  # what is not taken cannot run out
        hold = bank.id()
        granted(await bank.admit(hold, shadow=True))
        verdict = granted(await bank.amend(hold, 0, **options))
        assert (verdict.would_deny, verdict.spendable_nanos) == (reason, spendable)
        assert await bank.balance() == (1_000, 0, 0, 1)
        assert await bank.settle(hold, 0, tokens=3) is EndResult.ENDED
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_a_shadow_request_is_one_of_those_that_run(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = bank.id()
    two = Limits(concurrent_requests=1)
    assert granted(await bank.admit(hold, shadow=True, account=two)).would_deny is None
    other = bank.id()
    assert granted(await bank.admit(other, shadow=True, account=two)).would_deny is DenyReason.CONCURRENT
    await bank.void(hold)
    await bank.void(other)


async def test_a_trusted_hold_that_fits_is_like_any_other(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = await bank.open(600, goes_on=True)
    assert await bank.balance() == (400, 600, 0, 1)
    await bank.settle(hold, 250)
    assert await bank.balance() == (750, 0, 0, 0)


async def test_one_that_does_not_fit_reserves_nothing_and_is_charged_by_the_ledger(bank: Bank) -> None:
    await bank.payer(100)
    hold = bank.id()
    granted(await bank.admit(hold, entry=50))
    verdict = granted(await bank.amend(hold, 0, cap=600, goes_on=True, would_hold=None))
    assert verdict.would_deny is None
    await bank.void(hold)
    hold = bank.id()
    granted(await bank.admit(hold, entry=50))
    verdict = granted(await bank.amend(hold, 600, goes_on=True))
    assert verdict.would_deny is DenyReason.INSUFFICIENT
    assert await bank.balance() == (100, 0, 0, 1)
    await bank.beat(hold, 700)  # capped
    assert await bank.settle(hold, 250) is EndResult.ENDED
    assert await bank.balance() == (100, 0, 0, 0), "Redis takes nothing: the ledger says what is to go"


async def test_an_entry_hold_of_a_request_on_credit_ends_with_its_charge(bank: Bank) -> None:
    """Nobody could tell whether admit was executed. It was."""
    await bank.payer(100)
    hold = bank.id()
    granted(await bank.admit(hold, entry=50))
    assert await bank.settle(hold, 250) is EndResult.ENDED
    assert await bank.settle(hold, 250) is EndResult.ALREADY
    assert await bank.balance() == (100, 0, 0, 0)
