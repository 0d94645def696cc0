"""The worst case of a request: what is taken from ``available`` before it goes to a backend."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from extproc.money.price import Price, Rates
from extproc.money.usage import CHARACTERS_PER_TOKEN_MAX, NO_QUOTA, Quota, limited_tokens


class Terms(StrEnum):
    """On what terms a request is served."""

    PAID = "paid"  # out of the balance: the worst case is held, what was used is charged
    SANDBOX = "sandbox"  # metered, never debited
    SHADOW = "shadow"  # nothing is refused and nothing charged: it is recorded what would have been
    LENT = "lent"  # the hold store is away: nothing is held, what was used is charged later, out of the operator's bounded credit

    @property
    def is_charged(self) -> bool:
        return self in (Terms.PAID, Terms.LENT)


class Demand(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Upper bounds of what a request can use. ``output_tokens`` is the sum over its n choices (and prompts).

    ``image_tokens`` and ``audio_tokens`` are parts of ``input_tokens``.
    """

    input_tokens: int
    output_tokens: int
    image_tokens: int = 0
    audio_tokens: int = 0
    images: int = 0
    audio_ms: int = 0
    input_characters: int = 0
    input_words: int = 0

    def __post_init__(self) -> None:
        assert self.input_tokens >= self.image_tokens + self.audio_tokens
        assert min(self.image_tokens, self.audio_tokens, self.output_tokens) >= 0

    @property
    def limited_tokens(self) -> int:
        return limited_tokens(self.input_tokens, self.output_tokens, self.audio_ms)


class Quote(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a demand costs at most. Paid: ``reserved = cap = list``. Sandbox and shadow: ``reserved = cap = 0``. Lent: ``reserved = 0``.

    With a quota: reserved and cap are for what it leaves, list is for everything.
    """

    reserved_nanos: int
    cap_nanos: int
    list_nanos: int

    def __post_init__(self) -> None:
        assert self.reserved_nanos >= 0
        assert 0 <= self.cap_nanos <= self.list_nanos


NOTHING_DUE = Quote(reserved_nanos=0, cap_nanos=0, list_nanos=0)


def worst_case_nanos(price: Price, demand: Demand, quota: Quota = NO_QUOTA) -> int:
    """``prompt_bound × input + output_bound × output`` (MONEY.md, "Size"), + images, + parts beside tokens.

    Whether tokens are cached is never assumed, nor trusted to be cheaper; of bands, the dearest that the prompt can reach. At least the
    minimum charge, wherever that may be due.
    """
    plain = price.plain
    if plain is not None and quota is NO_QUOTA:
        fresh, cached, output = plain
        return price.of(demand.input_tokens * (max(cached, fresh)) + demand.output_tokens * output)
    reachable = [price.rates, *(band.rates for band in price.bands if demand.input_tokens > band.above_tokens)]
    worst = max(_worst_rated(rates, demand, quota) for rates in reachable)
    return price.beyond(worst) if _is_used_by_all(quota, demand) else price.of(worst)


def _is_used_by_all(quota: Quota, demand: Demand) -> bool:
    """Whatever comes of the request uses some of the quota, so that no minimum charge is due if nothing is left to be paid. Else a client
    who leaves before the answer owes one, though tokens of answers are free and those of prompts cost nothing.
    """
    covered = [free > 0 for free, tokens in zip(quota.both, (demand.input_tokens, demand.output_tokens), strict=True) if tokens]
    return bool(covered) and all(covered) and not demand.audio_ms


def _worst_rated(rates: Rates, demand: Demand, quota: Quota) -> int:
    fresh, cached, creation, image, audio, output, reasoning, *_ = rates.resolved
    text = max(fresh, cached, creation)
    inputs = [
        (text, demand.input_tokens - demand.image_tokens - demand.audio_tokens),
        (max(text, image), demand.image_tokens),
        (max(text, audio), demand.audio_tokens),
    ]
    return (
        _beyond(inputs, quota.input_tokens)
        + _beyond([(max(output, reasoning), demand.output_tokens)], quota.output_tokens)
        + rates.calls
        + rates.images * demand.images
        + rates.audio_ms * demand.audio_ms
        + rates.input_characters * demand.input_characters
        + rates.input_words * demand.input_words
        + (rates.output_characters * CHARACTERS_PER_TOKEN_MAX + rates.output_words) * demand.output_tokens
    )


def _beyond(parts: list[tuple[int, int]], free_tokens: int) -> int:
    """Σ rate × tokens beyond the free ones, if those are the cheapest: a quota may cover what costs least."""
    total = 0
    for rate, tokens in sorted(parts):
        free = min(tokens, free_tokens)
        free_tokens -= free
        total += rate * (tokens - free)
    return total


def quote(price: Price, demand: Demand, terms: Terms = Terms.PAID, quota: Quota = NO_QUOTA) -> Quote:
    """The worst case, and what of it these terms hold and charge at most."""
    nanos = worst_case_nanos(price, demand)
    due = nanos if quota is NO_QUOTA else worst_case_nanos(price, demand, quota)
    if terms is Terms.PAID:
        return Quote(reserved_nanos=due, cap_nanos=due, list_nanos=nanos)
    return Quote(reserved_nanos=0, cap_nanos=nanos if terms is Terms.LENT else 0, list_nanos=nanos)


def worth_taking(price: Price, demand: Demand, free: Quota) -> tuple[Quota, int]:
    """Of the free tokens that are there those which save money, and the worst case beside them.

    Where a kind of them saves nothing (the model is free, or costs its minimum anyway) they stay where they are. Both together may save
    what neither does alone: the minimum charge.
    """

    def due(given: int, made: int) -> int:
        return worst_case_nanos(price, demand, Quota(input_tokens=given, output_tokens=made) if given or made else NO_QUOTA)

    given, made = min(free.input_tokens, demand.input_tokens), min(free.output_tokens, demand.output_tokens)
    least = due(given, made)
    if given and due(0, made) == least:
        given = 0
    if made and due(given, 0) == least:
        made = 0
    return Quota(input_tokens=given, output_tokens=made) if given or made else NO_QUOTA, least


def affordable_output_tokens(price: Price, demand: Demand, *, spendable_nanos: int, quota: Quota = NO_QUOTA) -> int:
    """The most output tokens (sum over choices) whose worst case still fits beside the rest of ``demand``; −1 if not even that does.

    By bisection over :func:`worst_case_nanos`, so that rounding and factors can never disagree with the hold itself.
    """

    def fits(output_tokens: int) -> bool:
        return worst_case_nanos(price, msgspec.structs.replace(demand, output_tokens=output_tokens), quota) <= spendable_nanos

    if not fits(0):
        return -1
    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
