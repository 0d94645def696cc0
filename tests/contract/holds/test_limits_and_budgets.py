"""Rate limits, concurrency and key budgets, counted for account and key apart."""

from __future__ import annotations

import asyncio
import time

import pytest
from integration.holds.bank import Bank, denied, granted

from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import Denied, DenyReason, EndResult, Limits

MINUTE_MS = 60_000


@pytest.mark.parametrize("scope", ["account", "limits"])
@pytest.mark.parametrize(
    ("limit", "reason", "width_ms"),
    [
        (Limits(requests_per_minute=3), DenyReason.REQUESTS_PER_MINUTE, MINUTE_MS),
        (Limits(requests_per_hour=3), DenyReason.REQUESTS_PER_HOUR, 60 * MINUTE_MS),
    ],
)
async def test_requests(bank: Bank, scope: str, limit: Limits, reason: DenyReason, width_ms: int) -> None:
    await _early_in_the_window(MINUTE_MS)
    await bank.payer(1_000)
    left = [granted(await bank.admit(bank.id(), **{scope: limit})).requests for _ in range(3)]
    assert [window and (window.limit, window.remaining) for window in left] == [(3, 2), (3, 1), (3, 0)]
    refused = [denied(await bank.admit(bank.id(), **{scope: limit})) for _ in range(2)]
    assert {(verdict.reason, verdict.limit_source) for verdict in refused} == {(reason, "account" if scope == "account" else "key")}
    assert all(0 < verdict.retry_after_ms <= 2 * width_ms for verdict in refused)
    assert refused[0].window is not None
    assert (refused[0].window.limit, refused[0].window.remaining) == (3, 0)
    assert refused[0].retry_after_ms <= refused[0].window.reset_ms <= 2 * width_ms
    assert (await bank.balance())[3] == 3, "a denied request took no slot"
    granted(await bank.admit(bank.id()))


async def test_limits_of_account_and_key_are_counted_apart(bank: Bank) -> None:
    await _early_in_the_window(MINUTE_MS)
    await bank.payer(1_000)
    await bank.key(key="k2")
    tier, own = Limits(requests_per_minute=3), Limits(requests_per_minute=2)
    for _ in range(2):
        granted(await bank.admit(bank.id(), account=tier, limits=own))
    assert denied(await bank.admit(bank.id(), account=tier, limits=own)).limit_source == "key"
    window = granted(await bank.admit(bank.id(), account=tier, limits=own, key="k2")).requests
    assert window is not None
    assert (window.limit, window.remaining) == (3, 0), "the tighter one is told"
    assert denied(await bank.admit(bank.id(), account=tier, limits=own, key="k2")).limit_source == "account"


async def test_a_limit_of_zero_is_never_worth_a_retry(bank: Bank) -> None:
    await bank.payer(1_000)
    for limits in (Limits(requests_per_minute=0), Limits(tokens_per_minute=0), Limits(concurrent_requests=0)):
        assert denied(await bank.admit(bank.id(), account=limits)).retry_after_ms == 0


@pytest.mark.parametrize("scope", ["account", "limits"])
async def test_concurrency_is_counted_from_open_holds(bank: Bank, scope: str) -> None:
    await bank.payer(1_000)
    two = {scope: Limits(concurrent_requests=2)}
    ids = [bank.id() for _ in range(2)]
    for hold in ids:
        granted(await bank.admit(hold, **two))
    verdict = denied(await bank.admit(bank.id(), **two))
    assert (verdict.reason, verdict.limit_source) == (DenyReason.CONCURRENT, "account" if scope == "account" else "key")
    assert verdict.retry_after_ms > 0
    await bank.void(ids[0])
    granted(await bank.admit(bank.id(), **two))


@pytest.mark.parametrize("scope", ["account", "limits"])
async def test_tokens_are_counted_at_the_hold_and_corrected_at_the_settle(bank: Bank, scope: str) -> None:
    await _early_in_the_window(MINUTE_MS)
    await bank.payer(1_000)
    limit = {scope: Limits(tokens_per_minute=100)}
    hold = bank.id()
    window = granted(await bank.admit(hold, **limit)).tokens
    assert window is not None
    assert (window.limit, window.remaining, window.reset_ms) == (100, 100, 0)
    window = granted(await bank.amend(hold, 10, tokens=100, **limit)).tokens
    assert window is not None
    assert (window.limit, window.remaining) == (100, 0)
    verdict = denied(await bank.admit(bank.id(), **limit))
    assert (verdict.reason, verdict.limit_source) == (DenyReason.TOKENS_PER_MINUTE, "account" if scope == "account" else "key")
    assert 0 < verdict.retry_after_ms <= 2 * MINUTE_MS
    await bank.settle(hold, 5, tokens=30)
    other = bank.id()
    window = granted(await bank.admit(other, **limit)).tokens
    assert window is not None
    assert window.remaining == 70
    verdict = denied(await bank.amend(other, 10, tokens=71, **limit))
    assert verdict.reason is DenyReason.TOKENS_PER_MINUTE
    assert verdict.retry_after_ms > 0
    assert denied(await bank.amend(other, 10, tokens=101, **limit)).retry_after_ms == 0, "it never fits"
    granted(await bank.amend(other, 10, tokens=70, **limit))


async def test_a_budget_is_spent_and_held(bank: Bank) -> None:
    await bank.payer(1_000, budget_nanos="100", budget_period="day")
    one, other = await bank.open(60), bank.id()
    granted(await bank.admit(other))
    verdict = denied(await bank.amend(other, 41))
    assert (verdict.reason, verdict.limit_source, verdict.required_nanos, verdict.retry_after_ms) == (DenyReason.KEY_BUDGET, "key", 41, 0)
    assert await bank.balance() == (940, 60, 10, 2)
    await bank.settle(one, 59)
    granted(await bank.amend(other, 41))
    await bank.void(other)
    await bank.open(41)
    await bank.key(version=50, budget_nanos="101", budget_period="day")
    await bank.open(1)
    third = bank.id()
    granted(await bank.admit(third))
    assert denied(await bank.amend(third, 1)).reason is DenyReason.KEY_BUDGET


async def test_a_hold_returns_into_the_period_that_it_came_from(bank: Bank) -> None:
    await bank.payer(1_000, budget_nanos="100", budget_period="month")
    monthly = await bank.open(100)
    await bank.key(version=50, budget_nanos="100", budget_period="none")
    forever = await bank.open(100)
    assert await bank.settle(monthly, 30) is EndResult.ENDED
    hold = bank.id()
    granted(await bank.admit(hold))
    assert isinstance(await bank.amend(hold, 1), Denied)
    await bank.void(forever)
    granted(await bank.amend(hold, 100))
    await bank.key(version=51, budget_nanos="100", budget_period="month")
    last = bank.id()
    granted(await bank.admit(last))
    assert isinstance(await bank.amend(last, 71), Denied)
    granted(await bank.amend(last, 70))


async def _early_in_the_window(width_ms: int) -> None:
    """Tests of a window do not begin in its last five seconds."""
    while (rest_ms := width_ms - time.time_ns() // 1_000_000 % width_ms) < 5_000:
        await asyncio.sleep(rest_ms / 1_000)


async def test_a_line_of_keys_shares_one_budget(bank: Bank) -> None:
    """A key that replaces another goes on with its budget; what the old one still holds comes back into the same counter."""
    budget = {"budget_nanos": "100", "budget_period": "month"}
    await bank.payer(1_000, **budget)
    held = await bank.open(60)
    await bank.settle(await bank.open(30), 30)
    await bank.key(version=50, revoked="1", **budget)
    await bank.key(key="k2", budget_id="k1", **budget)
    hold = bank.id()
    granted(await bank.admit(hold, key="k2"))
    verdict = denied(await bank.amend(hold, 11, key="k2"))
    assert (verdict.reason, verdict.spendable_nanos) == (DenyReason.KEY_BUDGET, 10)
    await bank.settle(held, 20)
    assert isinstance(await bank.amend(hold, 51, key="k2"), Denied)
    granted(await bank.amend(hold, 50, key="k2"))
    await bank.key(key="k2", version=60, budget_id="other", **budget)
    await bank.void(hold, key="k2")
    await bank.key(key="k2", version=61, budget_id="k1", **budget)
    again = bank.id()
    granted(await bank.admit(again, key="k2"))
    assert isinstance(await bank.amend(again, 51, key="k2"), Denied)
    granted(await bank.amend(again, 50, key="k2"))


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(
    ("budget", "reason", "left"),
    [(300, DenyReason.KEY_BUDGET, 300), (500, DenyReason.INSUFFICIENT, 400), (900, DenyReason.INSUFFICIENT, 400)],
)
async def test_of_balance_and_budget_the_narrower_is_told(bank: Bank, budget: int, reason: DenyReason, left: int, *, goes_on: bool) -> None:
    """So that who asks for as much as is left, as a clamp does, is granted it."""
    await bank.payer(400, budget_nanos=str(budget))
    hold, fits = bank.id(), bank.id()
    granted(await bank.admit(hold))
    if goes_on:
        verdict = granted(await bank.amend(hold, 600, goes_on=True))
        assert verdict.would_deny is reason
        await bank.settle(hold, 0)
    else:
        refused = denied(await bank.amend(hold, 600))
        assert (refused.reason, refused.spendable_nanos, refused.required_nanos) == (reason, left, 600)
        granted(await bank.amend(hold, left))
        await bank.void(hold)
    granted(await bank.admit(fits))
    granted(await bank.amend(fits, left))
    await bank.settle(fits, left)
    assert await bank.budget_used() == left


@pytest.mark.parametrize("period", ["none", "day", "month"])
async def test_a_budget_counts_what_nothing_was_held_of_it_for(bank: Bank, period: str) -> None:
    """Of trust that was misplaced, and on credit while Redis was away: neither an entry hold nor an unknown one has anything of a budget."""
    await bank.payer(1_000, budget_nanos="100", budget_period=period, budget_id="line")
    trusted, entry, unknown = bank.id(), bank.id(), bank.id()
    for hold in (trusted, entry):
        granted(await bank.admit(hold))
    assert granted(await bank.amend(trusted, 600, goes_on=True)).would_deny is DenyReason.KEY_BUDGET
    for hold, charge, used in ((trusted, 40, 40), (entry, 30, 70), (unknown, 20, 90)):
        for _ in range(2):
            await bank.settle(hold, charge)
            assert await bank.budget_used() == used
    last = bank.id()
    granted(await bank.admit(last))
    assert denied(await bank.amend(last, 11)).spendable_nanos == 10
    granted(await bank.amend(last, 10))


async def test_a_budget_that_is_overdrawn_beyond_all_measure_takes_no_more(bank: Bank) -> None:
    """What leaves int64 is not counted, and fails nothing: an ending is executed whole."""
    await bank.payer(1_000, budget_nanos=str(BALANCE_NANOS_MAX))
    for _ in range(4):
        assert await bank.settle(bank.id(), BALANCE_NANOS_MAX) is EndResult.UNKNOWN
    assert await bank.budget_used() == 2 * BALANCE_NANOS_MAX
    hold = bank.id()
    granted(await bank.admit(hold))
    assert denied(await bank.amend(hold, 1)).reason is DenyReason.KEY_BUDGET
