"""A resolved price: what one model costs one account at one priority, with every factor that made it.

``price_id`` is the SHA-256 of the price in full, so a row that names it can be recomputed for ever (``price_versions`` keeps the text).
What is not asked for does not stand in the text: a price that could be written before there were cache creation or images has the id
that it always had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec

from extproc.money.amount import ceil_nanos

PER_RATE = 1_000_000  # a rate is nanos per this many of its unit
FACTOR_ONE = 1_000_000  # factors are millionths
FACTOR_DECIMALS = 6
RATE_DECIMALS = 9
PER_TOKEN = "per_token"  # noqa: S105 - the name of a method


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A multiplier with its reason: ``Factor(name="priority spot", millionths=500_000)`` halves the price."""

    name: str
    millionths: int

    def __post_init__(self) -> None:
        assert self.millionths >= 0


class Rates(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Nanos per 1,000,000 of each unit, before factors. ``None``: costs what the whole costs that it is a part of (input, output).

    The order of the fields is the order of the lines of a receipt; their names stand in ``price_versions``.
    """

    input: int = 0
    cached_input: int | None = None
    cache_creation: int | None = None
    image_tokens: int | None = None
    audio_tokens: int | None = None
    output: int = 0
    reasoning: int | None = None
    calls: int = 0
    images: int = 0
    audio_ms: int = 0
    input_characters: int = 0
    output_characters: int = 0
    input_words: int = 0
    output_words: int = 0

    def __post_init__(self) -> None:
        assert all(rate >= 0 for rate in self.resolved)

    @property
    def resolved(self) -> tuple[int, ...]:
        """Every rate, in the order of the fields."""
        values = msgspec.structs.asdict(self)
        whole = {"reasoning": self.output}
        return tuple(whole.get(name, self.input) if rate is None else rate for name, rate in values.items())

    @property
    def is_plain(self) -> bool:
        """Nothing but input, cached input and output: nearly every price."""
        return not msgspec.structs.replace(self, input=0, cached_input=None, output=0).spec()

    def spec(self) -> dict[str, int]:
        """What is set, under its name."""
        found: dict[str, int] = msgspec.to_builtins(self)
        return found


UNITS = Rates.__struct_fields__
PARTS = frozenset({"cached_input", "cache_creation", "image_tokens", "audio_tokens", "reasoning"})  # of input or output; may cost nothing


class Band(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Rates of requests with more than ``above_tokens`` tokens of prompt (for all of their tokens, not only for those above)."""

    above_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """List rates, the bands of long prompts (ascending), and the factors on the sum. ``method``: what the catalog calls it."""

    model: str
    priority: str
    tier: str
    currency: str
    rates: Rates
    bands: tuple[Band, ...] = ()
    factors: tuple[Factor, ...] = ()
    minimum_nanos: int = 0
    method: str = PER_TOKEN
    text: str = field(init=False, repr=False, compare=False)
    price_id: str = field(init=False)
    plain: tuple[int, int, int] | None = field(init=False, repr=False, compare=False)  # input, cached input, output, if that is all
    _numerator: int = field(init=False, repr=False, compare=False)  # of all factors together …
    _denominator: int = field(init=False, repr=False, compare=False)  # … and of a rate, per unit

    def __post_init__(self) -> None:
        assert self.minimum_nanos >= 0
        assert list(self.bands) == sorted(self.bands, key=lambda band: band.above_tokens)
        cached = self.rates.input if self.rates.cached_input is None else self.rates.cached_input
        rates = msgspec.structs.replace(self.rates, cached_input=cached)  # as it stands in the text
        spec: dict[str, Any] = {
            "method": self.method,
            "model": self.model,
            "priority": self.priority,
            "tier": self.tier,
            "currency": self.currency,
            "nanos_per_million": {**rates.spec(), "input": rates.input, "output": rates.output},
            "factors": [[factor.name, factor.millionths] for factor in self.factors],
            "minimum_nanos": self.minimum_nanos,
        }
        if self.bands:
            spec["above"] = [[band.above_tokens, band.rates.spec()] for band in self.bands]
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        numerator, denominator = 1, PER_RATE
        for factor in self.factors:
            numerator *= factor.millionths
            denominator *= FACTOR_ONE
        is_plain = rates.is_plain and not self.bands
        for name, value in (
            ("rates", rates),
            ("text", text),
            ("price_id", sha256(text.encode()).hexdigest()),
            ("plain", (rates.input, cached, rates.output) if is_plain else None),
            ("_numerator", numerator),
            ("_denominator", denominator),
        ):
            object.__setattr__(self, name, value)

    def rates_of(self, input_tokens: int) -> Rates:
        """The rates of a request with so long a prompt."""
        found = self.rates
        for band in self.bands:
            if input_tokens > band.above_tokens:
                found = band.rates
        return found

    @property
    def needs_text(self) -> bool:
        """Characters or words are priced: an answer's text is counted, whatever its usage says."""
        return self.plain is None and any(
            rates.input_characters or rates.output_characters or rates.input_words or rates.output_words
            for rates in (self.rates, *(band.rates for band in self.bands))
        )

    def of(self, rated: int) -> int:
        """Σ quantity × rate (nanos per million) → nanos, factors applied, rounded up once, at least the minimum charge."""
        return max(self.minimum_nanos, ceil_nanos(rated * self._numerator, self._denominator))

    def beyond(self, rated: int) -> int:
        """The same of what a free quota has left over: if that is nothing, nothing is due, not even the minimum charge."""
        return self.of(rated) if rated else 0

    @classmethod
    def parse(cls, text: str) -> Price:
        """The price that ``price_versions`` stores in full. ``ValueError`` or ``KeyError`` if it is not one."""
        spec = json.loads(text)
        return cls(
            model=spec["model"],
            priority=spec["priority"],
            tier=spec["tier"],
            currency=spec["currency"],
            rates=_rates(spec["nanos_per_million"]),
            bands=tuple(Band(above_tokens=above, rates=_rates(rates)) for above, rates in spec.get("above", ())),
            factors=tuple(Factor(name=name, millionths=millionths) for name, millionths in spec["factors"]),
            minimum_nanos=spec["minimum_nanos"],
            method=spec["method"],
        )


def _rates(spec: Mapping[str, int]) -> Rates:
    unknown = spec.keys() - set(UNITS)
    if unknown:
        raise ValueError(f"a price on {', '.join(sorted(unknown))} cannot be worked out by this version")
    return Rates(**spec)
