"""What an open hold is charged by what the access log says of it, and the row that says the same."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import replace
from typing import Any, NamedTuple

from extproc.holds.port import Sighted
from extproc.money.price import Price
from extproc.money.receipt import cost_nanos
from extproc.money.usage import FREE_UNITS, NO_QUOTA, RARE, Quota, Usage, used, used_of
from extproc.settlement.witness_lines import Figures


class Named(NamedTuple):
    """The price of a hold, as its row names it. ``text`` "": the ledger has it in full."""

    price_id: str
    text: str


def price_of(hold: Sighted) -> Named:
    """No name, of a row that cannot be read."""
    fields = _read(hold.row)
    price_id, text = fields.get("price_id"), fields.get("price")
    return Named(price_id if isinstance(price_id, str) else "", text if isinstance(text, str) else "")


def witnessed_by(figures: Figures | None, hold: Sighted, price: Price | None) -> Sighted:
    """The hold as it is to expire: the higher one of checkpoint and figure, at most the cap, with a row that says the same.

    ``price`` ``None``: it is not to be had, and the figure stands as it was told.
    """
    if figures is None:
        return hold
    flags = ["witnessed"]
    if price is not None and figures.later_tokens:
        with_later = _with_later(figures, price, hold.cap_nanos)
        if with_later.output_tokens > figures.output_tokens:
            figures, flags = with_later, ["witnessed", "output_estimated"]
    charge, used = min(figures.charge_nanos, hold.cap_nanos), used_of(figures.quota, usage_of(figures, figures.output_tokens))
    if not (hold.checkpoint_nanos <= charge and hold.used.is_within(used)) or (charge, used) == (hold.checkpoint_nanos, hold.used):
        return hold
    return replace(hold, checkpoint_nanos=charge, used=used, row=_row(hold.row, figures, charge, used, flags))


def _with_later(figures: Figures, price: Price, cap_nanos: int) -> Figures:
    """With the tokens that came after the figure: never so many that it would be more than was held for."""

    def cost(tokens: int) -> int:
        return cost_of(figures, figures.output_tokens + tokens, price)

    if cost(0) != figures.list_nanos:
        return figures  # another price than the gate's, or no price at all: only the gate knows
    later = bisect_right(range(figures.later_tokens + 1), cap_nanos, key=cost) - 1
    if later <= 0:
        return figures
    nanos = cost(later)
    return figures._replace(output_tokens=figures.output_tokens + later, list_nanos=nanos, charge_nanos=nanos)


def usage_of(figures: Figures, output_tokens: int) -> Usage:
    """With that many tokens of output."""
    rare, cached = dict(figures.rare), min(figures.cached_tokens, figures.input_tokens)
    creation = min(rare.get("cache_creation_tokens", 0), figures.input_tokens - cached)
    of_input = {"input_tokens": figures.input_tokens, "cached_tokens": cached, "cache_creation_tokens": creation}
    usage, _ = used(rare | of_input | {"output_tokens": output_tokens})
    return usage


def cost_of(figures: Figures, output_tokens: int, price: Price) -> int:
    """The same usage, beyond the free tokens that it takes, as the gate reckons."""
    usage = usage_of(figures, output_tokens)
    return cost_nanos(usage, price, used_of(figures.quota, usage))


def _row(row: bytes, figures: Figures, charge_nanos: int, used: Quota, flags: list[str]) -> bytes:
    """The row of the last checkpoint with these figures; one that cannot be read stays what it is: the ledger sets it aside."""
    fields = _read(row)
    before = fields.get("usage_flags", [])
    if not fields or not isinstance(before, list):
        return row
    list_nanos = max(figures.list_nanos, charge_nanos)
    fields |= {
        **{name: 0 for name in RARE if name in fields},
        **dict(figures.rare),
        **({} if used is NO_QUOTA else dict(zip(FREE_UNITS, used.both, strict=True))),
        "input_tokens": figures.input_tokens,
        "cached_tokens": figures.cached_tokens,
        "output_tokens": figures.output_tokens,
        "reasoning_tokens": figures.reasoning_tokens,
        "usage_source": figures.usage_source,
        "usage_flags": list(dict.fromkeys([*before, *flags])),
        "cost_nanos": charge_nanos,
        "list_nanos": list_nanos,
        "overage_nanos": list_nanos - charge_nanos,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def _read(row: bytes) -> dict[str, Any]:
    """Empty, if it is no row."""
    try:
        fields = json.loads(row)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
