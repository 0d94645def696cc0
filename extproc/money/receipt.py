"""From usage to a charge, with every line of the sum: what ``explain`` prints is what was charged."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.money.price import Price
from extproc.money.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``tokens × rate``; ``rate`` in nanos per 1,000,000 tokens, before factors."""

    name: str
    tokens: int
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """``cost`` is the true price of the usage; ``charge`` what is taken (never above the cap); ``overage`` the rest, on the operator."""

    lines: tuple[Line, ...]
    cost_nanos: int
    charge_nanos: int
    overage_nanos: int
    price_id: str

    def __post_init__(self) -> None:
        assert 0 <= self.charge_nanos <= self.cost_nanos
        assert self.charge_nanos + self.overage_nanos == self.cost_nanos


def lines_of(usage: Usage, price: Price) -> tuple[Line, ...]:
    """What :func:`cost_nanos` sums up: input that was not cached, cached input, output."""
    return (
        Line(name="input", tokens=usage.input_tokens - usage.cached_tokens, rate=price.input_rate),
        Line(name="cached input", tokens=usage.cached_tokens, rate=price.cached_input_rate),
        Line(name="output", tokens=usage.output_tokens, rate=price.output_rate),
    )


def cost_nanos(usage: Usage, price: Price) -> int:
    """The true price of a usage, before any cap. No token, no charge: the minimum charge is for requests that used something."""
    if usage.total_tokens == 0:
        return 0
    fresh = usage.input_tokens - usage.cached_tokens
    return price.of(fresh * price.input_rate + usage.cached_tokens * price.cached_input_rate + usage.output_tokens * price.output_rate)


def receipt(usage: Usage, price: Price, *, cap_nanos: int) -> Receipt:
    """Charge at most the cap; what the backend used beyond it is overage of the operator (MONEY.md, "Size")."""
    cost = cost_nanos(usage, price)
    charge = min(cost, cap_nanos)
    return Receipt(
        lines=lines_of(usage, price),
        cost_nanos=cost,
        charge_nanos=charge,
        overage_nanos=cost - charge,
        price_id=price.price_id,
    )
