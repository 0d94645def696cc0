"""Texts of an operator into values, and values into what is printed: every amount twice, every id and time as text."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from extproc.accounts.model import Account, Change, as_of
from extproc.accounts.registry import NewKey
from extproc.errors import UsageError
from extproc.money.amount import format_amount, format_scaled, parse_amount, parse_scaled
from extproc.money.price import FACTOR_DECIMALS
from extproc.settlement.deposit import Receipt

_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AMOUNTS: Final = {  # column of a row → name in an answer
    "hold_nanos": "hold",
    "cost": "cost",
    "refund_nanos": "given_back",
    "list_nanos": "list",
    "overage_nanos": "overage",
    "loss_nanos": "loss",
    "refunded_nanos": "refunded",
    "budget_nanos": "budget",
    "amount": "amount",
    "balance_after": "balance_after",
    "charge_nanos": "charge",
}

Facts = dict[str, Any]


def moment_ms(text: str, *, now_ms: int) -> int:
    """``2027-01-31``, ``2027-01-31T12:00:00Z`` (UTC where no zone is given), or from now: ``90m``, ``12h``, ``30d``, ``4w``."""
    duration = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if duration:
        return now_ms + int(duration[1]) * _SECONDS[duration[2]] * 1_000
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no time such as 2027-01-31T12:00:00Z and no duration such as 30d") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    at_ms = (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(milliseconds=1)
    if at_ms <= now_ms:
        raise UsageError(f"{text!r} is over already")
    return at_ms


def plain(row: Mapping[str, Any]) -> Facts:
    """A row as JSON can say it: ids and times as text, amounts as :func:`money`."""
    facts: Facts = {}
    for name, value in row.items():
        if name in _AMOUNTS:
            facts |= money(_AMOUNTS[name], value)
        elif name.endswith("_at") and value is not None:
            facts[name] = str(value).replace("+00:00", "Z")
        else:
            facts[name] = str(value) if isinstance(value, UUID) else value
    return facts


def tokens_entry(entry: Mapping[str, Any]) -> Facts:
    """A line in free tokens: its amount is a number of them, and no money."""
    return plain({name: value for name, value in entry.items() if name != "amount"}) | {"amount": str(entry["amount"])}


def money(name: str, nanos: int | None) -> Facts:
    """``name`` as the exact decimal, ``name_nanos`` as the int."""
    return {name: None if nanos is None else format_amount(nanos), f"{name}_nanos": nanos}


def account_facts(account: Account, *, now_ms: int) -> Facts:
    """Without its money; with the terms of now, and what is to change of them."""
    waiting = [change for change in account.changes if change.at_ms > now_ms]
    account = as_of(account, now_ms)
    return {
        "id": account.id,
        "name": account.name,
        "email": account.email,
        "tier": account.tier,
        "price_factor": _factor(account.price_factor),
        "frozen": account.frozen,
        "created_at": account.created_at,
        "later": [_later(change) for change in waiting],
    }


def _later(change: Change) -> Facts:
    told = {"effective_at": time_text(change.at_ms), **change.sets}
    return told if change.price_factor is None else {**told, "price_factor": _factor(change.price_factor)}


def _factor(millionths: int) -> str:
    return format_scaled(millionths, decimals=FACTOR_DECIMALS)


def new_key_facts(made: NewKey) -> Facts:
    """With the secret, this once."""
    return {"id": made.id, "key": made.secret, "in_force": made.is_delivered}


def amount_of(text: str) -> int:
    """Not negative. :class:`UsageError`."""
    try:
        return parse_amount(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def factor_of(text: str) -> int:
    """In millionths. :class:`UsageError`."""
    try:
        return parse_scaled(text, decimals=FACTOR_DECIMALS)
    except ValueError as error:
        raise UsageError(str(error)) from error


def receipt_facts(receipt: Receipt, amount_nanos: int, currency: str) -> Facts:
    """Of money that was moved without a hold."""
    return {
        "event": receipt.event_id,
        "booked_before": not receipt.fresh,
        **money("amount", amount_nanos),
        **money("balance", receipt.balance.balance_nanos),
        "currency": currency,
        "in_force": receipt.is_delivered,
    }


def month_of(text: str) -> dt.date:
    """``2026-10`` → its first day."""
    try:
        return dt.datetime.strptime(text, "%Y-%m").replace(tzinfo=dt.UTC).date()
    except ValueError as error:
        raise UsageError(f"{text!r} is not a month such as 2026-10") from error


def time_text(at_ms: int) -> str:
    """ISO 8601, UTC."""
    return dt.datetime.fromtimestamp(at_ms / 1_000, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_uuid(text: str) -> bool:
    """As text, in either case."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def uuid_of(text: str, what: str) -> str:
    """In lower case. :class:`UsageError`: it is none."""
    if not is_uuid(text):
        raise UsageError(f"{text!r} is not the id of a {what}")
    return text.lower()
