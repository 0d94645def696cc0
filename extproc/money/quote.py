"""The worst case of a request: what is taken from ``available`` before it goes to a backend."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from extproc.money.price import Price


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
    """Upper bounds of what a request can use. ``output_tokens`` is the sum over its n choices (and prompts)."""

    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        assert self.input_tokens >= 0
        assert self.output_tokens >= 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Quote(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a demand costs at most. Paid: ``reserved = cap = list``. Sandbox and shadow: ``reserved = cap = 0``. Lent: ``reserved = 0``."""

    reserved_nanos: int
    cap_nanos: int
    list_nanos: int

    def __post_init__(self) -> None:
        assert self.reserved_nanos >= 0
        assert 0 <= self.cap_nanos <= self.list_nanos


def worst_case_nanos(price: Price, demand: Demand) -> int:
    """``prompt_bound × input + output_bound × output`` (MONEY.md, "Size"); cached input is never assumed, nor trusted to be cheaper."""
    input_rate = max(price.input_rate, price.cached_input_rate)
    return price.of(demand.input_tokens * input_rate + demand.output_tokens * price.output_rate)


def quote(price: Price, demand: Demand, terms: Terms = Terms.PAID) -> Quote:
    """The worst case, and what of it these terms hold and charge at most."""
    nanos = worst_case_nanos(price, demand)
    if terms is Terms.PAID:
        return Quote(reserved_nanos=nanos, cap_nanos=nanos, list_nanos=nanos)
    return Quote(reserved_nanos=0, cap_nanos=nanos if terms is Terms.LENT else 0, list_nanos=nanos)


def affordable_output_tokens(price: Price, *, input_tokens: int, spendable_nanos: int) -> int:
    """The most output tokens (sum over choices) whose worst case still fits; −1 if not even the prompt does.

    By bisection over :func:`worst_case_nanos`, so that rounding and factors can never disagree with the hold itself.
    """

    def fits(output_tokens: int) -> bool:
        return worst_case_nanos(price, Demand(input_tokens=input_tokens, output_tokens=output_tokens)) <= spendable_nanos

    if not fits(0):
        return -1
    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
