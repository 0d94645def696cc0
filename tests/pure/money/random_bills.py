"""Random requests over every method of pricing: what is held for them, what they use, what they are charged. By seed.

    python tests/pure/money/random_bills.py 100000 7    checks so many, and prints hold ÷ charge of those that reach half of their maximum

A price, a demand and a quota are made as a catalog, ``exchange.sizing`` and a grant would make them, a usage within the demand as a backend would report
it. :func:`check` holds them to what must be true of every bill; a failure names its seed.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import random
import statistics
import sys
from collections import defaultdict
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from extproc.money.price import FACTOR_ONE, Band, Factor, Price, Rates
from extproc.money.quote import Demand, affordable_output_tokens, quote, worst_case_nanos, worth_taking
from extproc.money.receipt import cost_nanos, receipt
from extproc.money.usage import CHARACTERS_PER_TOKEN_MAX, NO_QUOTA, Quota, Usage, UsageSource, used_of

METHODS = ("per_token", "per_call", "per_character", "per_word", "per_image", "per_second", "hybrid")
PARTS = METHODS[:-1]
MILLIONTHS = (0, 1, 333_333, 500_000, 850_000, FACTOR_ONE, FACTOR_ONE, FACTOR_ONE, 1_500_000)
UNIT = 10**9


class Bill(NamedTuple):
    """What a request may cost, use at most, has free, and uses."""

    price: Price
    demand: Demand
    quota: Quota
    usage: Usage

    @property
    def has_run_far(self) -> bool:
        """At least half of the answer that was held for."""
        return 2 * self.usage.output_tokens >= self.demand.output_tokens


def random_bill(dice: random.Random) -> Bill:
    """Any request, at any price."""
    method = dice.choice(METHODS)
    demand = random_demand(dice, has_sound=method == "per_second" or dice.random() < 0.05)
    quota = Quota(input_tokens=_any(dice, 20_000), output_tokens=_any(dice, 4_000)) if dice.random() < 0.2 else NO_QUOTA
    return Bill(random_price(dice, method, demand), demand, quota, random_usage(dice, demand))


def ordinary_bill(dice: random.Random) -> Bill:
    """One as there are many: a price as vendors have it; a prompt that was counted; every other one partly cached; some output."""
    method = dice.choice(METHODS)
    prompt, images = _any(dice, 60_000), dice.choice((0, 0, 1, 4)) if method != "per_image" else dice.randint(1, 4)
    image_tokens, audio_ms = images * dice.randint(256, 2_691), dice.randint(1_000, 600_000) if method == "per_second" else 0
    tokens, output_max = prompt + image_tokens, 0 if audio_ms else dice.choice((256, 1_024, 4_096, 8_192))
    output = dice.randint(0, output_max)
    characters, words = prompt * dice.randint(2, 5), prompt * 3 // 4
    allowance = 18 + 4 * dice.randint(1, 20)
    demand = Demand(
        input_tokens=tokens + allowance,
        output_tokens=output_max,
        image_tokens=image_tokens,
        images=images,
        audio_ms=audio_ms,
        input_characters=characters,
        input_words=words,
    )
    usage = Usage(
        input_tokens=tokens,
        cached_tokens=dice.choice((0, dice.randint(0, prompt))),
        image_tokens=image_tokens,
        output_tokens=output,
        reasoning_tokens=dice.choice((0, output // 2)),
        images=images,
        audio_ms=audio_ms,
        input_characters=characters,
        output_characters=int(output * dice.uniform(1.5, 4.8)),
        input_words=words,
        output_words=int(output * dice.uniform(0.5, 0.8)),
        source=UsageSource.UPSTREAM,
    )
    return Bill(_ordinary_price(dice, method), demand, NO_QUOTA, usage)


def _ordinary_price(dice: random.Random, method: str) -> Price:
    text = dice.randint(1, 100) * UNIT // 10
    tokens = {"input": text, "cached_input": dice.choice((None, text // 10, text // 4)), "output": text * dice.randint(2, 5)}
    parts = {
        "per_token": tokens,
        "per_call": {"calls": 10**13},
        "per_character": {"input_characters": text // 4, "output_characters": text},
        "per_word": {"input_words": text, "output_words": 4 * text},
        "per_image": {"images": 10**13},
        "per_second": {"audio_ms": 100_000_000},
        "hybrid": tokens | {"calls": 10**11, "images": 10**12},
    }
    long = (Band(above_tokens=32_000, rates=Rates(**{**parts[method], "input": 2 * text})),) if "input" in parts[method] else ()
    factors = (Factor(name="tier t", millionths=850_000),)
    return Price(
        model="m", priority="spot", tier="t", currency="CNY", rates=Rates(**parts[method]), bands=long, factors=factors, method=method
    )


def random_price(dice: random.Random, method: str, demand: Demand) -> Price:
    """With steps about where the prompt ends, so that either side is met."""
    rates = random_rates(dice, method)
    around = sorted({dice.randint(1, 2 * demand.input_tokens + 2) for _ in range(dice.choice((0, 0, 1, 2)))}) if rates.input else []
    dearer = [Band(above_tokens=above, rates=random_rates(dice, method)) for above in around]
    return Price(
        model="m",
        priority="standard",
        tier="t",
        currency="CNY",
        rates=rates,
        bands=tuple(dearer),
        factors=tuple(Factor(name=f"f{index}", millionths=dice.choice(MILLIONTHS)) for index in range(dice.choice((0, 1, 1, 2, 4)))),
        minimum_nanos=dice.choice((0, 0, 0, 1, 1_000_000)),
        method=method,
    )


def random_rates(dice: random.Random, method: str) -> Rates:
    """From what a vendor asks to what no vendor would."""
    named = dice.sample(PARTS, dice.randint(2, len(PARTS))) if method == "hybrid" else [method]
    rates: dict[str, int | None] = {}
    if "per_token" in named:
        text = dice.choice((1, 999_999_999, UNIT // 2, UNIT, 4 * UNIT, dice.randint(0, 10**15)))
        rates |= {"input": text, "output": text * dice.randint(1, 4), "cached_input": dice.choice((None, 0, text // 10, text))}
        rates |= {"cache_creation": dice.choice((None, text * 5 // 4)), "image_tokens": dice.choice((None, text // 3, 2 * text))}
        rates |= {"audio_tokens": dice.choice((None, 10 * text)), "reasoning": dice.choice((None, 0, text, 5 * text))}
    each = {"per_call": "calls", "per_image": "images", "per_second": "audio_ms"}
    rates |= {unit: dice.randint(1, 10**7) * 1_000_000 for part, unit in each.items() if part in named}
    for part, unit in (("per_character", "characters"), ("per_word", "words")):
        if part in named:
            rates |= {f"input_{unit}": dice.randint(1, 10**10), f"output_{unit}": dice.randint(1, 10**10)}
    return Rates(**rates)


def random_demand(dice: random.Random, *, has_sound: bool) -> Demand:
    """A prompt of text, perhaps with images or sound, and the longest answer."""
    text, images = _any(dice, 200_000), dice.choice((0, 0, 0, 1, 3))
    image_tokens, audio_ms = images * dice.randint(4, 16_384), _any(dice, 3_600_000) if has_sound else 0
    audio_tokens = audio_ms // 10
    return Demand(
        input_tokens=text + image_tokens + audio_tokens,
        output_tokens=_any(dice, 16_384) * dice.choice((1, 1, 1, 4)),
        image_tokens=image_tokens,
        audio_tokens=audio_tokens,
        images=images,
        audio_ms=audio_ms,
        input_characters=text * dice.randint(1, 6),
        input_words=text,
    )


def random_usage(dice: random.Random, demand: Demand) -> Usage:
    """What a backend may report of it: all of the prompt or (if it was bounded, not counted) less; any part of the answer."""
    tokens = demand.input_tokens if dice.random() < 0.5 else dice.randint(0, demand.input_tokens)
    cached = dice.choice((0, 0, tokens, dice.randint(0, tokens)))
    output = dice.choice(
        (demand.output_tokens, dice.randint(0, demand.output_tokens), dice.randint((demand.output_tokens + 1) // 2, demand.output_tokens))
    )
    return Usage(
        input_tokens=tokens,
        cached_tokens=cached,
        cache_creation_tokens=dice.choice((0, 0, dice.randint(0, tokens - cached))),
        image_tokens=dice.choice((0, min(demand.image_tokens, tokens))),
        audio_tokens=dice.choice((0, min(demand.audio_tokens, tokens))),
        output_tokens=output,
        reasoning_tokens=dice.choice((0, output, dice.randint(0, output))),
        images=demand.images,
        audio_ms=dice.randint(demand.audio_ms * 9 // 10, demand.audio_ms),
        input_characters=demand.input_characters,
        output_characters=min(output * dice.randint(1, 9), output * CHARACTERS_PER_TOKEN_MAX),
        input_words=demand.input_words,
        output_words=dice.randint(0, output),
        source=UsageSource.UPSTREAM,
    )


def check(bill: Bill, *, spendable_nanos: int) -> Fraction | None:
    """What must be true of any bill. Gives hold ÷ charge of one that has run far and costs anything.

    The hold covers the charge. The charge is the sum of its lines times the factors, rounded up once, at least the minimum. It can be worked out again from
    the price's text. What a quota has paid for is not paid twice. A demand that was cut to what is affordable is, and no token more.
    """
    price, demand, there, usage = bill
    taken, beside_nanos = worth_taking(price, demand, there)
    held, quota = quote(price, demand, quota=taken), used_of(taken, usage)
    assert beside_nanos == held.reserved_nanos == worst_case_nanos(price, demand, there)
    done = receipt(usage, price, cap_nanos=held.cap_nanos, quota=quota)
    assert done.charge_nanos == done.cost_nanos <= held.reserved_nanos <= held.list_nanos
    assert done.cost_nanos == _exactly(bill, quota, [(line.quantity, line.rate) for line in done.lines])
    assert cost_nanos(usage, Price.parse(price.text), quota) == done.cost_nanos
    assert done.cost_nanos <= cost_nanos(usage, price)
    paid_for = sum(line.quantity for line in done.lines if line.name in TOKENS)
    assert paid_for == max(0, usage.input_tokens - quota.input_tokens) + max(0, usage.output_tokens - quota.output_tokens)
    most = affordable_output_tokens(price, demand, spendable_nanos=spendable_nanos, quota=there)
    if 0 <= most < 2**30:
        _check_edge(bill, most, spendable_nanos)
    return Fraction(held.reserved_nanos, done.charge_nanos) if bill.has_run_far and done.charge_nanos else None


TOKENS = ("input", "cached_input", "cache_creation", "image_tokens", "audio_tokens", "output", "reasoning")


def _check_edge(bill: Bill, most: int, spendable_nanos: int) -> None:
    def held(output_tokens: int) -> int:
        return worst_case_nanos(bill.price, _with_output(bill.demand, output_tokens), bill.quota)

    assert held(most) <= spendable_nanos < held(most + 1)


def _with_output(demand: Demand, output_tokens: int) -> Demand:
    parts = ("input_tokens", "image_tokens", "audio_tokens", "images", "audio_ms", "input_characters", "input_words")
    return Demand(output_tokens=output_tokens, **{part: getattr(demand, part) for part in parts})


def _exactly(bill: Bill, quota: Quota, lines: list[tuple[int, int]]) -> int:
    """The same in fractions, and in another order: each line by itself times each factor."""
    price, _, _, usage = bill
    sums = [Fraction(quantity * rate, 1_000_000) for quantity, rate in lines]
    for factor in price.factors:
        sums = [one * Fraction(factor.millionths, FACTOR_ONE) for one in sums]
    is_free = usage.is_nothing or (quota is not NO_QUOTA and not any(quantity * rate for quantity, rate in lines))
    return 0 if is_free else max(price.minimum_nanos, ceil(sum(sums)))


def _any(dice: random.Random, most: int) -> int:
    """Small ones as often as large ones."""
    return dice.randint(0, int(most ** dice.random()) + 1)


def run(requests: int, seed: int) -> dict[str, list[float]]:
    """Every other one at any price; of the ordinary ones hold ÷ charge, by method."""
    ratios = defaultdict(list)
    for number in range(requests):
        dice = random.Random(f"{seed}/{number}")
        bill = random_bill(dice) if number % 2 else ordinary_bill(dice)
        try:
            ratio = check(bill, spendable_nanos=dice.randint(0, 10 ** dice.randint(0, 15)))
        except AssertionError as error:
            error.add_note(f"seed {seed}, request {number}: {bill}")
            raise
        if ratio is not None and not number % 2:
            ratios[bill.price.method].append(float(ratio))
    return dict(ratios)


def main(requests: int, seed: int) -> None:
    """Prints a table."""
    ratios = run(requests, seed)
    ratios["all"] = [ratio for found in ratios.values() for ratio in found]
    print(f"{requests} random requests, seed {seed}: hold ≥ charge in all of them.")
    print("Hold ÷ charge of the ordinary ones that reached half of their maximum:")
    for method, found in sorted(ratios.items()):
        print(f"  {method:<14} {len(found):>7}  median {statistics.median(found):.2f}  p99 {statistics.quantiles(found, n=100)[98]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
