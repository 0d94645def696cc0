"""The behaviour of the Holds port, whatever stands behind it."""

from __future__ import annotations

import asyncio

import pytest
from integration.holds.bank import Bank, denied, granted

from extproc.errors import StoreRefused
from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import DenyReason, EndResult
from extproc.money.hold import Granted as GrantedType

BIG = 2**53


async def test_a_request_is_admitted_amended_and_settled(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = bank.id()
    verdict = granted(await bank.admit(hold, entry=10))
    assert (verdict.hold_id, verdict.spendable_nanos, verdict.requests, verdict.tokens) == (hold, 1_000, None, None)
    assert await bank.balance() == (1_000, 0, 10, 1)
    assert granted(await bank.amend(hold, 400)).spendable_nanos == 600
    assert await bank.balance() == (600, 400, 0, 1)
    assert await bank.settle(hold, 150) is EndResult.ENDED
    assert await bank.balance() == (850, 0, 0, 0)


async def test_a_void_gives_all_back(bank: Bank) -> None:
    await bank.payer(1_000)
    entry, exact = bank.id(), await bank.open(400)
    granted(await bank.admit(entry, entry=10))
    assert await bank.void(entry) is EndResult.ENDED
    assert await bank.void(exact) is EndResult.ENDED
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_every_call_may_be_repeated(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = bank.id()
    first = granted(await bank.admit(hold, entry=10, request="r1"))
    assert granted(await bank.admit(hold, entry=10, request="r1")) == first
    assert await bank.balance() == (1_000, 0, 10, 1)
    first = granted(await bank.amend(hold, 400))
    assert granted(await bank.amend(hold, 400)) == first
    granted(await bank.admit(hold, entry=10, request="r1"))
    assert await bank.balance() == (600, 400, 0, 1)
    assert [await bank.settle(hold, 150) for _ in range(3)] == [EndResult.ENDED, EndResult.ALREADY, EndResult.ALREADY]
    assert await bank.void(hold) is EndResult.ALREADY
    assert await bank.balance() == (850, 0, 0, 0)


async def test_an_ended_hold_is_refused_to_late_calls(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = await bank.open(400)
    await bank.settle(hold, 400)
    assert denied(await bank.admit(hold)).reason is DenyReason.ENDED
    assert denied(await bank.amend(hold, 400)).reason is DenyReason.ENDED
    await bank.beat(hold, 400)
    assert await bank.balance() == (600, 0, 0, 0)


async def test_ending_an_unknown_hold_keeps_it_from_ever_opening(bank: Bank) -> None:
    await bank.payer(1_000)
    voided, settled = bank.id(), bank.id()
    assert await bank.void(voided) is EndResult.UNKNOWN
    assert await bank.settle(settled, 7) is EndResult.UNKNOWN
    for hold in (voided, settled):
        assert denied(await bank.admit(hold)).reason is DenyReason.ENDED
        assert denied(await bank.amend(hold, 1)).reason is DenyReason.ENDED
        assert await bank.void(hold) is EndResult.ALREADY
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_what_redis_does_not_have_is_missing_not_zero(bank: Bank) -> None:
    verdict = denied(await bank.admit(bank.id(), entry=0, payer="nobody"))
    assert (verdict.reason, verdict.limit_source, verdict.retry_after_ms) == (DenyReason.MISSING, "account", 0)
    await bank.payer(1_000)
    verdict = denied(await bank.admit(bank.id(), entry=0, key="unknown"))
    assert (verdict.reason, verdict.limit_source) == (DenyReason.MISSING, "key")
    assert denied(await bank.amend(bank.id(), 5)).reason is DenyReason.MISSING
    assert await bank.holds.view("nobody") is None


async def test_money_decides_at_the_entry(bank: Bank) -> None:
    await bank.payer(100)
    verdict = denied(await bank.admit(bank.id(), entry=101))
    assert (verdict.reason, verdict.required_nanos, verdict.spendable_nanos, verdict.retry_after_ms) == (
        DenyReason.INSUFFICIENT,
        101,
        100,
        0,
    )
    granted(await bank.admit(bank.id(), entry=60))
    verdict = denied(await bank.admit(bank.id(), entry=60))
    assert verdict.reason is DenyReason.HELD
    assert verdict.retry_after_ms > 0
    granted(await bank.admit(bank.id(), entry=0))
    assert await bank.balance() == (100, 0, 60, 2)


async def test_money_decides_at_the_amend_whatever_entries_are_held(bank: Bank) -> None:
    await bank.payer(100)
    one, other = bank.id(), bank.id()
    granted(await bank.admit(one, entry=50))
    granted(await bank.admit(other, entry=50))
    granted(await bank.amend(one, 100))
    verdict = denied(await bank.amend(other, 100))
    assert (verdict.reason, verdict.required_nanos, verdict.spendable_nanos) == (DenyReason.HELD, 100, 0)
    verdict = denied(await bank.amend(other, 101))
    assert (verdict.reason, verdict.retry_after_ms) == (DenyReason.INSUFFICIENT, 0)
    assert await bank.balance() == (0, 100, 50, 2), "a denied amend leaves the entry hold"
    granted(await bank.amend(other, 0))
    assert await bank.void(one) is EndResult.ENDED
    assert await bank.void(other) is EndResult.ENDED


async def test_an_exact_hold_of_nothing_needs_nothing(bank: Bank) -> None:
    await bank.payer(0)
    hold = await bank.open(0)
    assert await bank.settle(hold, 0) is EndResult.ENDED
    assert await bank.balance() == (0, 0, 0, 0)


async def test_credit_may_be_spent_and_no_more(bank: Bank) -> None:
    await bank.payer(100, credit=50)
    hold = await bank.open(150)
    assert await bank.balance() == (-50, 150, 0, 1)
    assert denied(await bank.admit(bank.id(), entry=1)).reason is DenyReason.HELD
    await bank.settle(hold, 150)
    assert denied(await bank.admit(bank.id(), entry=1)).reason is DenyReason.INSUFFICIENT
    assert await bank.balance() == (-50, 0, 0, 0)


@pytest.mark.parametrize("amount", [BIG - 1, BIG, BIG + 1, BALANCE_NANOS_MAX - 1, BALANCE_NANOS_MAX])
async def test_amounts_are_exact_beyond_doubles(bank: Bank, amount: int) -> None:
    await bank.payer(amount, budget_nanos=str(BALANCE_NANOS_MAX))
    granted(await bank.admit(hold := bank.id(), entry=amount))
    assert (await bank.balance())[2] == amount
    assert denied(await bank.amend(hold, amount + 1)).reason is DenyReason.INSUFFICIENT if amount < BALANCE_NANOS_MAX else True
    assert granted(await bank.amend(hold, amount)).spendable_nanos == 0
    assert await bank.balance() == (0, amount, 0, 1)
    assert await bank.settle(hold, amount - 1) is EndResult.ENDED
    assert await bank.balance() == (1, 0, 0, 0)


async def test_a_charge_above_the_cap_is_refused_and_changes_nothing(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = await bank.open(400)
    with pytest.raises(StoreRefused, match="cap"):
        await bank.settle(hold, 401)
    assert await bank.balance() == (600, 400, 0, 1)
    assert await bank.settle(hold, 400) is EndResult.ENDED


async def test_an_exact_hold_does_not_change_its_size(bank: Bank) -> None:
    await bank.payer(1_000)
    hold = await bank.open(400)
    with pytest.raises(StoreRefused, match="exact already"):
        await bank.amend(hold, 300)
    assert await bank.balance() == (600, 400, 0, 1)


async def test_a_retry_takes_the_first_hold_over(bank: Bank) -> None:
    await bank.payer(1_000)
    first, second = bank.id(), bank.id()
    granted(await bank.admit(first, request="r1"))
    assert granted(await bank.admit(second, request="r1")).hold_id == first
    assert granted(await bank.admit(second, request="r1")).hold_id == first, "repeated"
    assert await bank.balance() == (1_000, 0, 10, 1)
    assert denied(await bank.admit(first, request="r1")).reason is DenyReason.TAKEN
    assert denied(await bank.amend(first, 5)).reason is DenyReason.TAKEN
    await bank.beat(first, 0)
    assert await bank.void(first) is EndResult.TAKEN
    assert await bank.balance() == (1_000, 0, 10, 1)
    granted(await bank.amend(first, 400, owner=second))
    assert granted(await bank.admit(second, request="r1")).hold_id == first, "repeated after its amend"
    assert await bank.settle(first, 100) is EndResult.TAKEN
    assert await bank.settle(first, 100, owner=second) is EndResult.ENDED
    assert denied(await bank.admit(second, request="r1")).reason is DenyReason.ENDED
    assert await bank.balance() == (900, 0, 0, 0)


async def test_an_unknown_take_over_is_voided_under_the_id_that_its_exchange_knows(bank: Bank) -> None:
    await bank.payer(1_000)
    first, second = bank.id(), bank.id()
    granted(await bank.admit(first, request="r1"))
    granted(await bank.admit(second, request="r1"))
    assert await bank.void(second) is EndResult.ENDED
    assert await bank.void(second) is EndResult.ALREADY
    assert denied(await bank.admit(second, request="r1")).reason is DenyReason.ENDED
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_three_tries(bank: Bank) -> None:
    await bank.payer(1_000)
    ids = [bank.id() for _ in range(3)]
    assert [granted(await bank.admit(hold, request="r1")).hold_id for hold in ids] == [ids[0]] * 3
    assert [await bank.void(hold) for hold in ids] == [EndResult.TAKEN, EndResult.TAKEN, EndResult.ENDED]
    assert await bank.balance() == (1_000, 0, 0, 0)


async def test_only_an_entry_hold_of_the_same_key_and_request_is_taken_over(bank: Bank) -> None:
    await bank.payer(1_000)
    await bank.key(key="k2")
    amended, ended, other, fresh = (bank.id() for _ in range(4))
    granted(await bank.admit(amended, request="r1"))
    granted(await bank.amend(amended, 100))
    assert granted(await bank.admit(ended, request="r1")).hold_id == ended
    await bank.void(ended)
    assert granted(await bank.admit(other, request="r1")).hold_id == other
    assert granted(await bank.admit(fresh, request="r1", key="k2")).hold_id == fresh
    another = bank.id()
    assert granted(await bank.admit(another, request="r2")).hold_id == another
    no_id, no_id_either = bank.id(), bank.id()
    assert granted(await bank.admit(no_id)).hold_id == no_id
    assert granted(await bank.admit(no_id_either)).hold_id == no_id_either
    assert await bank.balance() == (900, 100, 50, 6)


@pytest.mark.parametrize(("asked", "balance", "granted_number"), [(500, 10, 10), (5, 10, 5), (500, 0, 0)])
async def test_concurrent_exact_holds_are_granted_as_far_as_the_balance_goes(
    bank: Bank, asked: int, balance: int, granted_number: int
) -> None:
    price = 2**53 + 1
    await bank.payer(min(balance * price + price - 1, BALANCE_NANOS_MAX))
    holds = [bank.id() for _ in range(asked)]

    async def take(hold: str) -> bool:
        granted(await bank.admit(hold, entry=0))
        return isinstance(await bank.amend(hold, price), GrantedType)

    assert sum(await asyncio.gather(*map(take, holds))) == granted_number
    assert (await bank.balance())[1] == granted_number * price
