"""A resolved price: what one model costs one account at one priority, with every factor that made it.

``price_id`` is the SHA-256 of the price in full, so a row that names it can be recomputed for ever (``price_versions`` keeps the text).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256

from extproc.money.amount import ceil_nanos

TOKENS_PER_RATE = 1_000_000  # a rate is nanos per this many tokens
FACTOR_ONE = 1_000_000  # factors are millionths
FACTOR_DECIMALS = 6
RATE_DECIMALS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A multiplier with its reason: ``Factor(name="priority spot", millionths=500_000)`` halves the price."""

    name: str
    millionths: int

    def __post_init__(self) -> None:
        assert self.millionths >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """List rates in nanos per 1,000,000 tokens, and the factors on their sum. Method ``per_token``."""

    model: str
    priority: str
    tier: str
    currency: str
    input_rate: int
    cached_input_rate: int
    output_rate: int
    factors: tuple[Factor, ...] = ()
    minimum_nanos: int = 0
    text: str = field(init=False, repr=False, compare=False)
    price_id: str = field(init=False)
    _numerator: int = field(init=False, repr=False, compare=False)  # of all factors together …
    _denominator: int = field(init=False, repr=False, compare=False)  # … and of a rate, per token

    def __post_init__(self) -> None:
        assert min(self.input_rate, self.cached_input_rate, self.output_rate, self.minimum_nanos) >= 0
        spec = {
            "method": "per_token",
            "model": self.model,
            "priority": self.priority,
            "tier": self.tier,
            "currency": self.currency,
            "nanos_per_million": {"input": self.input_rate, "cached_input": self.cached_input_rate, "output": self.output_rate},
            "factors": [[factor.name, factor.millionths] for factor in self.factors],
            "minimum_nanos": self.minimum_nanos,
        }
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "price_id", sha256(text.encode()).hexdigest())
        numerator, denominator = 1, TOKENS_PER_RATE
        for factor in self.factors:
            numerator *= factor.millionths
            denominator *= FACTOR_ONE
        object.__setattr__(self, "_numerator", numerator)
        object.__setattr__(self, "_denominator", denominator)

    @property
    def is_free(self) -> bool:
        """Nothing that a request can do costs anything."""
        zero_factor = any(factor.millionths == 0 for factor in self.factors)
        return not self.minimum_nanos and (zero_factor or not (self.input_rate or self.cached_input_rate or self.output_rate))

    def of(self, rated_tokens: int) -> int:
        """Σ tokens × rate (nanos per million) → nanos, factors applied, rounded up once, at least the minimum charge."""
        return max(self.minimum_nanos, ceil_nanos(rated_tokens * self._numerator, self._denominator))

    @classmethod
    def parse(cls, text: str) -> Price:
        """The price that ``price_versions`` stores in full. ``ValueError`` or ``KeyError`` if it is not one."""
        spec = json.loads(text)
        rates = spec["nanos_per_million"]
        return cls(
            model=spec["model"],
            priority=spec["priority"],
            tier=spec["tier"],
            currency=spec["currency"],
            input_rate=rates["input"],
            cached_input_rate=rates["cached_input"],
            output_rate=rates["output"],
            factors=tuple(Factor(name=name, millionths=millionths) for name, millionths in spec["factors"]),
            minimum_nanos=spec["minimum_nanos"],
        )
