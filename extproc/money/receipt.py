"""From usage to a charge, with every line of the sum: what ``explain`` prints is what was charged."""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul

from extproc.money.price import UNITS, Price
from extproc.money.usage import NO_QUOTA, Quota, Usage

TOKEN_UNITS = frozenset(UNITS[:7])


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``quantity × rate``; ``rate`` in nanos per 1,000,000 of the unit, before factors. ``name``: the unit, one of ``price.UNITS``."""

    name: str
    quantity: int
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


def quantities(usage: Usage, quota: Quota = NO_QUOTA) -> tuple[int, ...]:
    """How much of each of ``price.UNITS`` is to be paid. Every input token counts once: as cached or written to the cache, whatever it
    is of; else as of an image, of audio, or as plain. What a quota pays for is taken off, what usually costs most first: plain tokens,
    image, audio, written, cached; text of the answer before its reasoning.
    """
    cached, creation = usage.cached_tokens, usage.cache_creation_tokens
    rest = usage.input_tokens - cached - creation
    image = min(usage.image_tokens, rest)
    audio = min(usage.audio_tokens, rest - image)
    fresh, image, audio, creation, cached = _after(quota.input_tokens, rest - image - audio, image, audio, creation, cached)
    output, reasoning = _after(quota.output_tokens, usage.output_tokens - usage.reasoning_tokens, usage.reasoning_tokens)
    return (
        fresh, cached, creation, image, audio, output, reasoning, 0 if usage.is_nothing else 1, usage.images, usage.audio_ms,
        usage.input_characters, usage.output_characters, usage.input_words, usage.output_words,
    )  # fmt: skip


def _after(free: int, *parts: int) -> list[int]:
    due = []
    for part in parts:
        taken = min(free, part)
        free -= taken
        due.append(part - taken)
    return due


def lines_of(usage: Usage, price: Price, quota: Quota = NO_QUOTA) -> tuple[Line, ...]:
    """What :func:`cost_nanos` sums up: every unit that was used and has a price, tokens also if they have none."""
    rates = price.rates_of(usage.input_tokens).resolved
    return tuple(
        Line(name=name, quantity=quantity, rate=rate)
        for name, quantity, rate in zip(UNITS, quantities(usage, quota), rates, strict=True)
        if quantity and (rate or name in TOKEN_UNITS)
    )


def cost_nanos(usage: Usage, price: Price, quota: Quota = NO_QUOTA) -> int:
    """The true price of a usage, before any cap. No usage, no charge: the minimum charge is for requests that used something."""
    plain = price.plain
    if plain is not None and quota is NO_QUOTA:
        if not usage.input_tokens and not usage.output_tokens:
            return 0
        cached = usage.cached_tokens
        return price.of((usage.input_tokens - cached) * plain[0] + cached * plain[1] + usage.output_tokens * plain[2])
    if usage.is_nothing:
        return 0
    rated = sum(map(mul, quantities(usage, quota), price.rates_of(usage.input_tokens).resolved))
    return price.of(rated) if quota is NO_QUOTA else price.beyond(rated)


def receipt(usage: Usage, price: Price, *, cap_nanos: int, quota: Quota = NO_QUOTA) -> Receipt:
    """Charge at most the cap; what the backend used beyond it is overage of the operator (MONEY.md, "Size")."""
    cost = cost_nanos(usage, price, quota)
    charge = min(cost, cap_nanos)
    return Receipt(
        lines=lines_of(usage, price, quota),
        cost_nanos=cost,
        charge_nanos=charge,
        overage_nanos=cost - charge,
        price_id=price.price_id,
    )
