"""A request's charge worked out again from its row and its price, line by line: what was booked must be what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from extproc.ledger.port import Explanation
from extproc.money.amount import format_amount
from extproc.money.price import FACTOR_DECIMALS, RATE_DECIMALS, Price, Rates
from extproc.money.receipt import Line, Receipt, receipt
from extproc.money.usage import rare_of, used

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
        "per_million": _per_million(price.rates),
        "above": [{"input_tokens": band.above_tokens, "per_million": _per_million(band.rates)} for band in price.bands],
        "factors": [{"name": factor.name, "factor": decimal(factor.millionths, FACTOR_DECIMALS)} for factor in price.factors],
        "minimum_nanos": price.minimum_nanos,
    }


def _per_million(rates: Rates) -> dict[str, str]:
    """Of every unit that has a price of its own."""
    return {name: decimal(rate, RATE_DECIMALS) for name, rate in {"input": 0, "output": 0, **rates.spec()}.items()}


def _sum(total: Receipt, price: Price) -> dict[str, Any]:
    return {
        "lines": [_line(line) for line in total.lines],
        "subtotal": decimal(sum(line.quantity * line.rate for line in total.lines), LINE_DECIMALS),
        "factors": [{"name": factor.name, "factor": decimal(factor.millionths, FACTOR_DECIMALS)} for factor in price.factors],
        "cost_nanos": total.cost_nanos,
        "cost": format_amount(total.cost_nanos),
        "charge_nanos": total.charge_nanos,
        "charge": format_amount(total.charge_nanos),
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "quantity": line.quantity,
        "per_million": decimal(line.rate, RATE_DECIMALS),
        "amount": decimal(line.quantity * line.rate, LINE_DECIMALS),
    }


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
