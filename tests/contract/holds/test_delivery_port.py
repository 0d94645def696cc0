"""Out of the ledger into the hold store: doubled, late and reordered delivery is harmless."""

from __future__ import annotations

import itertools

import pytest
from integration.holds.bank import Bank, denied, granted

from extproc.money.amount import BALANCE_NANOS_MAX
from extproc.money.hold import DenyReason


@pytest.mark.parametrize("order", list(itertools.permutations([2, 3, 3, 4])))
async def test_credits_in_any_order(bank: Bank, order: tuple[int, ...]) -> None:
    await bank.payer(100)
    totals = {2: (150, 0), 3: (2**53 + 1, 70), 4: (2**53 + 8, 20)}
    for version in order:
        total, credit = totals[version]
        assert await bank.holds.credit("anna", version=version, total_nanos=total, credit_nanos=credit)
    view = await bank.holds.view("anna")
    assert view is not None
    assert (view.available_nanos, view.credit_nanos, view.version) == (2**53 + 8, 20, 4)
    bank.credited["anna"] = 2**53 + 8


async def test_a_credit_adds_to_what_holds_have_left(bank: Bank) -> None:
    await bank.payer(100)
    await bank.open(60)
    await bank.holds.credit("anna", version=2, total_nanos=130, credit_nanos=0)
    assert await bank.balance() == (70, 60, 0, 1)
    await bank.holds.credit("anna", version=3, total_nanos=110, credit_nanos=5)
    assert await bank.balance() == (50, 60, 0, 1)
    bank.credited["anna"] = 110


async def test_the_largest_amounts(bank: Bank) -> None:
    await bank.payer(0)
    most = BALANCE_NANOS_MAX
    assert await bank.holds.credit("anna", version=2, total_nanos=most, credit_nanos=most)
    hold = await bank.open(most)
    assert await bank.balance() == (0, most, 0, 1)
    assert await bank.holds.credit("anna", version=3, total_nanos=most, credit_nanos=0)
    await bank.void(hold)
    assert await bank.balance() == (most, 0, 0, 0)
    bank.credited["anna"] = most


async def test_a_credit_to_a_missing_payer_is_told(bank: Bank) -> None:
    assert not await bank.holds.credit("nobody", version=2, total_nanos=100, credit_nanos=0)
    assert not await bank.holds.set_frozen("nobody", version=2, frozen=True)
    assert await bank.holds.view("nobody") is None


async def test_a_payer_is_installed_once(bank: Bank) -> None:
    await bank.payer(100)
    assert not await bank.holds.install_payer("anna", version=9, total_nanos=5, available_nanos=5, credit_nanos=5)
    assert await bank.balance() == (100, 0, 0, 0)


async def test_revocation_and_expiry_take_effect_on_the_next_request(bank: Bank) -> None:
    await bank.payer(100)
    granted(await bank.admit(bank.id()))
    await bank.key(version=100, revoked="1")
    verdict = denied(await bank.admit(bank.id()))
    assert (verdict.reason, verdict.limit_source) == (DenyReason.KEY_REVOKED, "key")
    await bank.key(version=101, expires_ms="1")
    assert denied(await bank.admit(bank.id())).reason is DenyReason.KEY_EXPIRED
    await bank.key(version=102, expires_ms=str(2**42))
    granted(await bank.admit(bank.id()))


async def test_the_newest_version_of_a_key_wins(bank: Bank) -> None:
    await bank.payer(100)
    await bank.key(version=20, revoked="1")
    await bank.key(version=9, revoked="0")
    assert denied(await bank.admit(bank.id())).reason is DenyReason.KEY_REVOKED


async def test_a_field_that_no_script_reads_is_a_bug_of_the_caller(bank: Bank) -> None:
    with pytest.raises(AssertionError, match="colour"):
        await bank.holds.put_key("anna", "k1", version=1, fields={"colour": "red"})
    await bank.payer(0)


async def test_a_frozen_payer_gets_nothing_until_it_is_let_go(bank: Bank) -> None:
    await bank.payer(100)
    assert await bank.holds.set_frozen("anna", version=2, frozen=True)
    assert await bank.holds.set_frozen("anna", version=1, frozen=False)
    verdict = denied(await bank.admit(bank.id()))
    assert (verdict.reason, verdict.limit_source, verdict.retry_after_ms) == (DenyReason.FROZEN, "account", 0)
    assert await bank.holds.set_frozen("anna", version=3, frozen=False)
    granted(await bank.admit(bank.id()))


async def test_open_holds_are_listed(bank: Bank) -> None:
    await bank.payer(1_000)
    await bank.payer(1_000, payer="bob")
    exact = await bank.open(400)
    await bank.beat(exact, 123)
    entry = bank.id()
    granted(await bank.admit(entry, payer="bob"))
    (one,) = await bank.holds.open_holds("anna")
    assert (one.hold_id, one.payer_id, one.key_id, one.state, one.reserved_nanos, one.checkpoint_nanos) == (
        exact,
        "anna",
        "k1",
        "exact",
        400,
        123,
    )
    assert one.lease_ms > 1_700_000_000_000
    assert {(hold.hold_id, hold.state) for hold in await bank.holds.open_holds()} == {(exact, "exact"), (entry, "entry")}
