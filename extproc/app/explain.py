"""A request's charge worked out again from its row and its price, line by line: what was booked must be what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from extproc.ledger.port import Explanation
from extproc.money.amount import format_amount
from extproc.money.price import FACTOR_DECIMALS, PARTS, PER_RATE, RATE_DECIMALS, Price, Rates
from extproc.money.receipt import Line, Receipt, receipt
from extproc.money.usage import rare_of, used

MEASURES: Final[Mapping[str, tuple[str, int]]] = {
    "calls": ("call", 1),
    "images": ("image", 1),
    "audio_ms": ("ms", 1_000),
    "input_characters": ("character", PER_RATE),
    "output_characters": ("character", PER_RATE),
    "input_words": ("word", PER_RATE),
    "output_words": ("word", PER_RATE),
}
"""What is counted, and for how many of it ``models.yaml`` says a price; of all others: tokens, a million."""

LINE_DECIMALS: Final = 15
"""Of ``tokens × rate`` before the rounding: nanos (9 decimals) per million (6)."""


def explained(found: Explanation) -> dict[str, Any]:
    """Units ``other`` than the usual tokens, ``price`` in full, ``sum`` with its lines, ``entries_sum_nanos``, and whether everything
    ``agrees`` (else: ``faults``).
    """
    row = found.request
    price = Price.parse(found.price) if found.price else None
    usage, quota = used(row)
    total = receipt(usage, price, cap_nanos=_cap_nanos(row), quota=quota) if price else None
    entries_sum = sum(entry["amount"] for entry in found.entries if entry["unit"] == "nanos")
    faults = _faults(found, price, total, entries_sum)
    return {
        "currency": price.currency if price else "",
        "other": rare_of(usage),
        "price": _price(price) if price else None,
        "sum": _sum(total, price) if total and price else None,
        "entries_sum_nanos": entries_sum,
        "agrees": not faults,
        "faults": faults,
    }


def _cap_nanos(row: Mapping[str, Any]) -> int:
    """The most that may be charged: the hold. Without one (credit, untaken trust) the row tells the cap only by what broke it."""
    is_unheld = not row["hold_nanos"] and not row["sandbox"] and not row["shadow"]
    return int(row["list_nanos"] - row["overage_nanos"] if is_unheld else row["hold_nanos"])


def _price(price: Price) -> dict[str, Any]:
    return {
        "price_id": price.price_id,
        "method": price.method,
        "model": price.model,
        "priority": price.priority,
        "tier": price.tier,
        "rates": _rates(price.rates),
        "above": [{"input_tokens": band.above_tokens, "rates": _rates(band.rates)} for band in price.bands],
        "factors": [{"name": factor.name, "factor": decimal(factor.millionths, FACTOR_DECIMALS)} for factor in price.factors],
        "minimum_nanos": price.minimum_nanos,
    }


def _rates(rates: Rates) -> list[dict[str, Any]]:
    """Of every unit that has a price, or is a part of one that has."""
    said, whole = rates.spec(), {"reasoning": rates.output}
    return [{"name": name, **_rate(name, rate)} for name, rate in said.items() if rate or (name in PARTS and whole.get(name, rates.input))]


def _rate(name: str, rate: int) -> dict[str, Any]:
    """``price`` for so many (``per``) of a ``unit``, as the catalog says it; and for a million of them, as it is worked out."""
    unit, per = MEASURES.get(name, ("token", PER_RATE))
    price = decimal(rate * per, RATE_DECIMALS + 6)
    return {"unit": unit, "per": per, "price": price, "per_million": decimal(rate, RATE_DECIMALS)}


def _sum(total: Receipt, price: Price) -> dict[str, Any]:
    return {
        "lines": [_line(line) for line in total.lines],
        "subtotal": decimal(sum(line.quantity * line.rate for line in total.lines), LINE_DECIMALS),
        "factors": [{"name": factor.name, "factor": decimal(factor.millionths, FACTOR_DECIMALS)} for factor in price.factors],
        "minimum": format_amount(price.minimum_nanos),
        "is_minimum": total.cost_nanos == price.minimum_nanos > 0,
        "cost_nanos": total.cost_nanos,
        "cost": format_amount(total.cost_nanos),
        "charge_nanos": total.charge_nanos,
        "charge": format_amount(total.charge_nanos),
    }


def _line(line: Line) -> dict[str, Any]:
    amount = decimal(line.quantity * line.rate, LINE_DECIMALS)
    return {"name": line.name, "quantity": line.quantity, **_rate(line.name, line.rate), "amount": amount}


def _faults(found: Explanation, price: Price | None, total: Receipt | None, entries_sum: int) -> list[str]:
    """What does not fit together; none, if all is well."""
    row = found.request
    charged = row["cost"] + row["loss_nanos"]
    faults = []
    if price is None and row["price_id"] and (charged or row["list_nanos"]):
        faults.append(f"the ledger does not have the price {row['price_id']}")
    if price is not None and price.price_id != row["price_id"]:
        faults.append(f"the price in the ledger is {price.price_id}, the row names {row['price_id']}")
    if total is None and charged:
        faults.append("something was charged, and there is no price to charge by")
    if total is not None and row["ending"] in ("settle", "expire") and total.charge_nanos != charged:
        whole = " – the whole hold, as a policy may say (ended_early: full, no_usage: hold)" if charged == row["hold_nanos"] else ""
        faults.append(f"the usage costs {format_amount(total.charge_nanos)}, charged was {format_amount(charged)}{whole}")
    if row["ending"] in ("void", "none") and charged:
        faults.append("a request that was given back has a charge")
    if row["hold_nanos"] - min(charged, row["hold_nanos"]) != row["refund_nanos"]:
        faults.append("charged and given back are not the hold")
    taken = -sum(entry["amount"] for entry in found.entries if entry["kind"] == "customer" and entry["unit"] == "nanos")
    due = row["cost"] - row["refunded_nanos"]
    if taken != due:
        faults.append(f"the entries take {format_amount(taken)} from the account, the row says {format_amount(due)}")
    if entries_sum:
        faults.append(f"the entries sum to {format_amount(entries_sum)}, not to zero")
    return faults


def decimal(number: int, decimals: int) -> str:
    """A scaled int as the exact decimal, at least two of them: ``(1_500, 3)`` → ``"1.50"``."""
    units, rest = divmod(number, 10**decimals)
    return f"{units}.{str(rest).zfill(decimals).rstrip('0').ljust(2, '0')}"
