"""Lines of an event sum to zero, and say the right thing of the customer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.ledger import entries as book
from extproc.ledger.entries import AccountKind, Entry
from extproc.ledger.port import ENDINGS, EventType, derived_id, id_at
from extproc.money.hold import uuid7

PAYER = "018f0000-0000-7000-8000-000000000001"
nanos = st.integers(min_value=0, max_value=4 * 10**18)


def deposited(amount: int) -> book.Entries:
    source, target = AccountKind.CLEARING, AccountKind.CUSTOMER
    return book.granted(payer_id=PAYER, provider="stripe", source=source, target=target, amount_nanos=amount)


@given(charge=nanos, share=st.integers(min_value=0, max_value=100))
def test_a_charge_takes_what_is_there_and_loses_the_rest(charge, share):
    taken = charge * share // 100
    lines = book.charged(payer_id=PAYER, model="m", charge_nanos=charge, taken_nanos=taken)
    assert sum(line.amount for line in lines) == 0
    assert book.customer_nanos(lines) == -taken
    assert sum(line.amount for line in lines if line.kind is AccountKind.REVENUE) == charge
    assert sum(line.amount for line in lines if line.kind is AccountKind.LOSS) == taken - charge


@given(amount=nanos.filter(bool))
def test_overage_never_touches_the_customer(amount):
    lines = book.overage(model="", overage_nanos=amount)
    assert [(line.kind, line.name, line.amount) for line in lines] == [("loss", "overage", -amount), ("revenue", "unknown", amount)]
    assert book.customer_nanos(lines) == 0


@given(amount=st.integers(min_value=-(10**18), max_value=10**18).filter(bool))
def test_a_grant_has_its_counterpart_in_clearing(amount):
    lines = deposited(amount)
    assert book.balanced(lines)
    assert book.customer_nanos(lines) == amount


def test_nothing_charged_has_no_lines():
    assert book.charged(payer_id=PAYER, model="m", charge_nanos=0, taken_nanos=0) == ()


def test_what_does_not_sum_to_zero_is_found():
    lines = deposited(5)
    assert not book.balanced(lines[:1])
    units = (Entry(kind=AccountKind.PROMO, amount=1), Entry(kind=AccountKind.PROMO, amount=-1, unit=book.Unit.FREE_INPUT))
    assert not book.balanced(units), "the sum is per unit"


@given(charge=nanos, overage=nanos)
def test_a_customers_line_names_him_and_no_other_does(charge, overage):
    lines = (
        *book.charged(payer_id=PAYER, model="m", charge_nanos=charge, taken_nanos=charge // 2),
        *book.overage(model="m", overage_nanos=overage),
        *deposited(charge),
    )
    assert all((line.kind is AccountKind.CUSTOMER) == (line.payer_id == PAYER) for line in lines)
    assert all(line.amount for line in lines), "a line without an amount is none"


@given(ms=st.integers(min_value=0, max_value=2**48 - 1), bits=st.integers(min_value=0, max_value=2**74 - 1))
def test_derived_ids_stay_in_their_millisecond_and_repeat(ms, bits):
    hold = uuid7(unix_ms=ms, random_bits=bits)
    adjust = derived_id(hold, "adjust")
    assert adjust == derived_id(hold, "adjust") != derived_id(hold, "overage")
    assert adjust[:13] == hold[:13], "the same millisecond, so the same partition"
    assert adjust[14] == "7"
    assert id_at(ms, "x") == id_at(ms, "x") != id_at(ms, "y")


def test_endings_are_of_the_closed_list():
    assert set(EventType) > ENDINGS
