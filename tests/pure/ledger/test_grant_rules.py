"""Money that moves without a hold: which accounts, which way, and who has to say why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.ledger import entries as book
from extproc.ledger.entries import AccountKind
from extproc.ledger.port import ENDINGS, GRANTS, Bound, EventType, Grant

PAYER = "018f0000-0000-7000-8000-000000000001"
OTHER = "018f0000-0000-7000-8000-000000000002"
CUSTOMER, CLEARING = AccountKind.CUSTOMER, AccountKind.CLEARING

# What each does with 100, written out by hand: (customer, name of the other account, its change).
BOOKED = {
    EventType.DEPOSIT: [("customer", 100), ("clearing", -100)],
    EventType.BONUS: [("customer", 100), ("promo", -100)],
    EventType.REDEMPTION: [("customer", 100), ("promo", -100)],
    EventType.USAGE_REFUND: [("customer", 100), ("revenue", -100)],
    EventType.PAYOUT: [("clearing", 100), ("customer", -100)],
    EventType.DISPUTE_OPENED: [("disputes", 100), ("customer", -100)],
    EventType.DISPUTE_WON: [("customer", 100), ("disputes", -100)],
    EventType.DISPUTE_LOST: [("clearing", 100), ("disputes", -100)],
    EventType.CORRECTION: [("customer", 100), ("clearing", -100)],
    EventType.WRITEOFF: [("customer", 100), ("loss", -100)],
    EventType.BONUS_EXPIRY: [("promo", 100), ("customer", -100)],
}


def grant(event_type: EventType, **fields: Any) -> Grant:
    values: dict[str, Any] = {
        "id": OTHER,
        "payer_id": PAYER,
        "event_type": event_type,
        "amount_nanos": 100,
        "provider": "x",
        "of_id": OTHER if GRANTS[event_type].bound is Bound.CHARGE else None,
        "actor": "test",
        "reason": "because",
        "occurred_ms": 1,
    }
    return Grant(**(values | fields))


def lines_of(one: Grant) -> book.Entries:
    return book.granted(
        payer_id=one.payer_id, provider=one.provider, source=one.rule.source, target=one.rule.target, amount_nanos=one.amount_nanos
    )


@pytest.mark.parametrize("event_type", GRANTS)
def test_what_each_books(event_type):
    one = grant(event_type)
    lines = lines_of(one)
    assert [(line.kind, line.amount) for line in lines] == BOOKED[event_type]
    assert [line.name for line in lines] == ["" if line.kind is CUSTOMER else "x" for line in lines]
    assert one.customer_nanos == book.customer_nanos(lines)


@given(event_type=st.sampled_from(sorted(GRANTS)), amount=st.integers(min_value=1, max_value=4 * 10**18))
def test_lines_sum_to_zero_and_only_the_customers_names_him(event_type, amount):
    lines = lines_of(grant(event_type, amount_nanos=amount))
    assert book.balanced(lines)
    assert all((line.kind is CUSTOMER) == (line.payer_id == PAYER) for line in lines)


def test_everything_of_the_closed_list_is_an_ending_follows_one_or_is_in_the_table():
    assert set(EventType) - set(GRANTS) - ENDINGS == {EventType.ADJUST, EventType.OVERAGE, EventType.QUOTA_GRANT}


def test_only_disputes_refunds_of_deposits_and_corrections_may_leave_a_negative_balance():
    may_take_all = {kind for kind, rule in GRANTS.items() if rule.bound is Bound.NONE and (rule.customer_sign < 0 or rule.either_way)}
    assert may_take_all == {EventType.PAYOUT, EventType.DISPUTE_OPENED, EventType.CORRECTION}


@pytest.mark.parametrize("event_type", GRANTS)
def test_only_a_correction_goes_either_way(event_type):
    with pytest.raises(AssertionError):
        grant(event_type, amount_nanos=0)
    if event_type is EventType.CORRECTION:
        assert grant(event_type, amount_nanos=-5).customer_nanos == -5
        return
    with pytest.raises(AssertionError):
        grant(event_type, amount_nanos=-5)


@pytest.mark.parametrize("event_type", [EventType.BONUS, EventType.USAGE_REFUND, EventType.CORRECTION, EventType.WRITEOFF])
def test_who_decides_says_why(event_type):
    with pytest.raises(AssertionError, match="says why"):
        grant(event_type, reason="")


def test_a_refund_of_usage_is_of_a_request_and_nothing_else_is():
    for kind, of_id in ((EventType.USAGE_REFUND, None), (EventType.DEPOSIT, OTHER)):
        with pytest.raises(AssertionError, match="of a request"):
            grant(kind, of_id=of_id)
