"""Prices, quotes and receipts: the hold covers every usage within the demand, and every charge can be recomputed from its price."""

import json
from fractions import Fraction
from hashlib import sha256
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.money.price import FACTOR_ONE, Factor, Price, Rates
from extproc.money.quote import Demand, Quote, affordable_output_tokens, quote, worst_case_nanos
from extproc.money.receipt import Receipt, cost_nanos, receipt
from extproc.money.usage import NO_USAGE, TOKENS_MAX, Usage, UsageSource

RATES = st.integers(0, 10**15)  # what the catalog allows
FACTORS = st.lists(st.builds(Factor, name=st.text(max_size=8), millionths=st.integers(0, 1_000 * FACTOR_ONE)), max_size=3).map(tuple)
TOKENS = st.integers(0, 10_000_000)


NO_MINIMUM = st.just(0)


@st.composite
def prices(draw, *, minimum=NO_MINIMUM) -> Price:
    input_rate = draw(RATES)
    return Price(
        model=draw(st.text(max_size=10)),
        priority="standard",
        tier="default",
        currency="CNY",
        rates=Rates(input=input_rate, cached_input=draw(st.integers(0, input_rate)), output=draw(RATES)),
        factors=draw(FACTORS),
        minimum_nanos=draw(minimum),
    )


@st.composite
def usages(draw, input_max=TOKENS, output_max=TOKENS) -> Usage:
    input_tokens, output_tokens = draw(input_max), draw(output_max)
    return Usage(
        input_tokens=input_tokens,
        cached_tokens=draw(st.integers(0, input_tokens)),
        output_tokens=output_tokens,
        reasoning_tokens=draw(st.integers(0, output_tokens)),
        source=UsageSource.UPSTREAM,
    )


@given(prices(minimum=st.integers(0, 10**12)), TOKENS, TOKENS, st.data())
def test_the_hold_covers_every_usage_within_the_demand(price, input_tokens, output_tokens, data):
    held = quote(price, Demand(input_tokens=input_tokens, output_tokens=output_tokens))
    usage = data.draw(usages(st.integers(0, input_tokens), st.integers(0, output_tokens)))
    done = receipt(usage, price, cap_nanos=held.cap_nanos)
    assert done.charge_nanos == done.cost_nanos <= held.reserved_nanos
    assert done.overage_nanos == 0


@given(prices(), usages(), st.integers(0, 10**18))
def test_a_charge_never_passes_the_cap_and_the_rest_is_overage(price, usage, cap_nanos):
    done = receipt(usage, price, cap_nanos=cap_nanos)
    assert done.charge_nanos == min(done.cost_nanos, cap_nanos)
    assert done.charge_nanos + done.overage_nanos == done.cost_nanos
    assert done.price_id == price.price_id


@given(prices(), usages())
def test_the_cost_is_the_sum_of_the_lines_times_the_factors_rounded_up_once(price, usage):
    done = receipt(usage, price, cap_nanos=10**60)
    exact = Fraction(sum(line.quantity * line.rate for line in done.lines), 1_000_000)
    for factor in price.factors:
        exact *= Fraction(factor.millionths, FACTOR_ONE)
    assert done.cost_nanos == ceil(exact)
    assert sum(line.quantity for line in done.lines) == usage.limited_tokens


@given(prices(), usages(), st.integers(1, 1_000))
def test_more_output_never_costs_less(price, usage, more):
    longer = Usage(input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens + more)
    assert cost_nanos(longer, price) >= cost_nanos(usage, price)


@given(prices(), usages())
def test_a_cached_token_never_costs_more_than_a_fresh_one(price, usage):
    fresh = Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    assert cost_nanos(usage, price) <= cost_nanos(fresh, price)


@given(prices(minimum=st.integers(0, 10**12)), TOKENS, st.integers(0, 10**18))
def test_affordable_output_agrees_with_the_hold(price, input_tokens, spendable_nanos):
    most = affordable_output_tokens(price, Demand(input_tokens=input_tokens, output_tokens=0), spendable_nanos=spendable_nanos)

    def held(output_tokens: int) -> int:
        return worst_case_nanos(price, Demand(input_tokens=input_tokens, output_tokens=output_tokens))

    if most < 0:
        assert held(0) > spendable_nanos
        return
    assert held(most) <= spendable_nanos
    assert most == TOKENS_MAX or held(most + 1) > spendable_nanos


@given(prices(minimum=st.integers(0, 10**12)))
def test_a_price_is_named_by_its_text_and_read_back_from_it(price):
    again = Price.parse(price.text)
    assert again == price
    assert (again.text, again.price_id) == (price.text, price.price_id)
    assert price.price_id == sha256(price.text.encode()).hexdigest()


@given(prices(), prices())
def test_different_prices_have_different_ids(one, two):
    assert (one.price_id == two.price_id) == (one == two)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nanos_per_million": {}}', "null"])
def test_what_is_no_price(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Price.parse(text)


PRICE = Price(
    model="qwen",
    priority="spot",
    tier="business",
    currency="CNY",
    rates=Rates(input=4 * 10**9, cached_input=10**9, output=12 * 10**9),
    factors=(Factor(name="priority spot", millionths=500_000), Factor(name="tier business", millionths=850_000)),
)


def test_a_receipt_by_hand():
    """1,000 prompt tokens, 400 of them cached, 300 output: (600·4 + 400·1 + 300·12)/10⁶ × 0.5 × 0.85 = 0.00272 units."""
    usage = Usage(input_tokens=1_000, cached_tokens=400, output_tokens=300, source=UsageSource.UPSTREAM)
    done = receipt(usage, PRICE, cap_nanos=10**9)
    assert [(line.name, line.quantity, line.rate) for line in done.lines] == [
        ("input", 600, 4 * 10**9),
        ("cached_input", 400, 10**9),
        ("output", 300, 12 * 10**9),
    ]
    assert done.charge_nanos == 2_720_000


def test_the_text_of_a_price_is_what_price_versions_keeps_for_ever():
    """If this changes, every stored price id does: then it needs another way to name old prices."""
    assert json.loads(PRICE.text) == {
        "currency": "CNY",
        "factors": [["priority spot", 500_000], ["tier business", 850_000]],
        "method": "per_token",
        "minimum_nanos": 0,
        "model": "qwen",
        "nanos_per_million": {"cached_input": 10**9, "input": 4 * 10**9, "output": 12 * 10**9},
        "priority": "spot",
        "tier": "business",
    }
    assert PRICE.price_id == "e03de4a6133aeaa291b187442c51a24a9fbca5931c4ec64f8bf8c00143e7867c"


def test_nothing_used_costs_nothing_even_with_a_minimum():
    price = Price(model="m", priority="p", tier="t", currency="CNY", rates=Rates(input=1, cached_input=1, output=1), minimum_nanos=1_000)
    assert cost_nanos(NO_USAGE, price) == 0
    assert cost_nanos(Usage(input_tokens=1), price) == 1_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: Usage(input_tokens=1, cached_tokens=2),
        lambda: Usage(output_tokens=1, reasoning_tokens=2),
        lambda: Usage(input_tokens=-1),
        lambda: Usage(output_tokens=TOKENS_MAX + 1),
        lambda: Demand(input_tokens=-1, output_tokens=0),
        lambda: Quote(reserved_nanos=1, cap_nanos=2, list_nanos=1),
        lambda: Receipt(lines=(), cost_nanos=5, charge_nanos=6, overage_nanos=-1, price_id=""),
        lambda: Receipt(lines=(), cost_nanos=5, charge_nanos=3, overage_nanos=1, price_id=""),
        lambda: Factor(name="", millionths=-1),
        lambda: Price(model="", priority="", tier="", currency="", rates=Rates(input=-1, cached_input=0, output=0)),
    ],
)
def test_values_are_valid_once_constructed(make):
    with pytest.raises(AssertionError):
        make()
