"""A few random bills of every method, with every save of a file; `make fuzz` makes a hundred thousand."""

import pytest
from random_bills import METHODS, run

from extproc.money.price import Band, Factor, Price, Rates
from extproc.money.quote import Demand, quote, worst_case_nanos, worth_taking
from extproc.money.receipt import cost_nanos, lines_of
from extproc.money.usage import NO_QUOTA, Quota, Usage, used_of


def test_the_hold_covers_the_charge_whatever_is_priced():
    assert run(240, seed=5).keys() == set(METHODS)


def price_of(minimum_nanos: int = 0, bands: tuple[Band, ...] = (), factors: tuple[Factor, ...] = (), **rates: int) -> Price:
    return Price(
        model="m", priority="p", tier="t", currency="CNY", rates=Rates(**rates), bands=bands, factors=factors, minimum_nanos=minimum_nanos
    )


def test_the_hold_looks_at_every_step_that_the_prompt_may_reach():
    """A step may be cheaper than the one before it, and a prompt is held for by its bound: it may end below."""
    price = price_of(input=4, output=4, bands=(Band(above_tokens=100, rates=Rates(input=1, output=1)),))
    assert worst_case_nanos(price, Demand(input_tokens=100_000_000, output_tokens=0)) == 400
    assert cost_nanos(Usage(input_tokens=100_000_000), price) == 100


def test_each_token_of_the_prompt_is_paid_for_once():
    price = price_of(input=1, cached_input=2, cache_creation=3, image_tokens=4, audio_tokens=5, output=6, reasoning=7)
    usage = Usage(
        input_tokens=100, cached_tokens=30, cache_creation_tokens=20, image_tokens=40, audio_tokens=40, output_tokens=9, reasoning_tokens=4
    )
    assert [(line.name, line.quantity) for line in lines_of(usage, price)] == [
        ("cached_input", 30),
        ("cache_creation", 20),
        ("image_tokens", 40),
        ("audio_tokens", 10),
        ("output", 5),
        ("reasoning", 4),
    ]


def test_an_image_that_is_cached_is_a_cached_one():
    price = price_of(input=1, cached_input=2, image_tokens=4, audio_tokens=5)
    usage = Usage(input_tokens=100, cached_tokens=70, image_tokens=60, audio_tokens=60)
    assert [(line.name, line.quantity) for line in lines_of(usage, price)] == [("cached_input", 70), ("image_tokens", 30)]


@pytest.mark.parametrize(
    ("rates", "demand", "held"),
    [
        ({"input": 1, "cached_input": 3}, {"input_tokens": 10}, 30),
        ({"input": 1, "cache_creation": 3}, {"input_tokens": 10}, 30),
        ({"input": 1, "image_tokens": 3}, {"input_tokens": 10, "image_tokens": 4}, 6 + 12),
        ({"input": 3, "image_tokens": 1}, {"input_tokens": 10, "image_tokens": 4}, 30),  # nobody may tell of the image
        ({"input": 1, "audio_tokens": 3}, {"input_tokens": 10, "audio_tokens": 4}, 6 + 12),
        ({"output": 1, "reasoning": 3}, {"output_tokens": 10}, 30),
        ({"output": 3, "reasoning": 1}, {"output_tokens": 10}, 30),
        ({"output_characters": 1}, {"output_tokens": 10}, 60),
        ({"output_words": 1}, {"output_tokens": 10}, 10),
        ({"input_characters": 1, "input_words": 2}, {"input_characters": 10, "input_words": 3}, 16),
        ({"calls": 5, "images": 2, "audio_ms": 3}, {"images": 3, "audio_ms": 7}, 5 + 6 + 21),
    ],
)
def test_the_worst_of_each_unit_is_held_for(rates, demand, held):
    price = price_of(**{unit: rate * 1_000_000 for unit, rate in rates.items()})
    assert worst_case_nanos(price, Demand(**{"input_tokens": 0, "output_tokens": 0, **demand})) == held


def test_a_quota_may_pay_for_the_cheapest_tokens():
    """Of ten of text at 1 and ten of an image at 5, the ten of text are free: the hold must be for those of the image."""
    price = price_of(input=1_000_000, image_tokens=5_000_000)
    quota = Quota(input_tokens=10)
    assert worst_case_nanos(price, Demand(input_tokens=20, output_tokens=0, image_tokens=10), quota) == 50
    assert cost_nanos(Usage(input_tokens=20, image_tokens=10), price, quota) == 50


@pytest.mark.parametrize(
    ("quota", "due"),
    [
        (NO_QUOTA, 1_000),
        (Quota(input_tokens=10), 1_000),
        (Quota(input_tokens=10, output_tokens=4), 1_000),
        (Quota(input_tokens=10, output_tokens=5), 0),
    ],
)
def test_what_a_quota_pays_for_as_a_whole_costs_nothing_not_even_the_minimum(quota, due):
    price = price_of(1_000, input=1_000_000, output=1_000_000)
    assert cost_nanos(Usage(input_tokens=10, output_tokens=5), price, quota) == due
    held = quote(price, Demand(input_tokens=10, output_tokens=5), quota=quota)
    assert (held.reserved_nanos, held.list_nanos) == (due, 1_000)


@pytest.mark.parametrize(
    ("rates", "there", "taken", "reserved"),
    [
        ({"input": 1, "output": 1}, (10, 5), (10, 5), 0),  # each alone would leave the minimum
        ({"input": 1, "output": 1}, (10, 4), (0, 0), 1_000),
        ({"output": 1_000}, (0, 5), (0, 5), 1_000),  # of the output nothing is due; a prompt alone would owe the minimum
        ({"output": 1}, (10, 5), (10, 5), 0),
        ({}, (10, 5), (10, 5), 0),
        ({"calls": 1}, (10, 5), (0, 0), 1_000),
    ],
)
def test_the_minimum_is_held_for_wherever_it_may_be_due(rates, there, taken, reserved):
    """Nothing that a usage within the demand can cost is above the hold: no output, no prompt, or both."""
    price = price_of(1_000, **{unit: rate * 1_000_000 for unit, rate in rates.items()})
    found, beside = worth_taking(price, Demand(input_tokens=10, output_tokens=5), Quota(input_tokens=there[0], output_tokens=there[1]))
    assert (found.both, beside) == (taken, reserved)
    for read, made in ((10, 0), (0, 5), (10, 5), (1, 1)):
        usage = Usage(input_tokens=read, output_tokens=made)
        assert cost_nanos(usage, price, used_of(found, usage)) <= reserved


def test_what_costs_nothing_holds_and_costs_its_minimum():
    price = price_of(1_000)
    assert quote(price, Demand(input_tokens=10, output_tokens=5)).reserved_nanos == 1_000
    assert (cost_nanos(Usage(input_tokens=1), price), cost_nanos(Usage(), price)) == (1_000, 0)


def test_factors_multiply_before_the_one_rounding():
    """Three thirds of a nano, a third off each: rounded line by line, or factor by factor, it would be more."""
    thirds = tuple(Factor(name=name, millionths=333_333) for name in "abc")
    price = price_of(input=333_333, output=333_333, factors=thirds)
    assert cost_nanos(Usage(input_tokens=27, output_tokens=27), price) == 1


@pytest.mark.parametrize(
    ("price", "price_id"),
    [
        (price_of(input=5, cached_input=2, output=9), "635fe263063eb6a9f4ab7238097c49705c1b33b629ab4e9fc9bacba5dcc39bb2"),
        (price_of(input=5, output=9), "b05861f33d7037c030d6e99180f4e9c57d899c49169e18bf1a34d9b12e13168f"),
        (
            price_of(7, input=5, output=9, factors=(Factor(name="tier t", millionths=1),)),
            "cb6ffff82746c10e9db9c7e04f8f3f4d420fb5425dd08b56205fe96e0c51beec",
        ),
    ],
)
def test_ids_of_prices_that_were_possible_before_are_what_they_were(price, price_id):
    assert price.price_id == price_id


def test_a_price_of_every_unit_is_read_back_from_its_text():
    rates = {name: number for number, name in enumerate(Rates.__struct_fields__, 1)}
    price = price_of(3, bands=(Band(above_tokens=9, rates=Rates(**rates)), Band(above_tokens=10, rates=Rates(output=1))), **rates)
    assert Price.parse(price.text) == price
    with pytest.raises(ValueError, match="a price on smells cannot be worked out by this version"):
        Price.parse(price.text.replace('"images"', '"smells"'))
