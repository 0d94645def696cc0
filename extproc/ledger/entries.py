"""Double entry, pure: from what happened to the lines that book it.

A customer's account is what he may still spend: a deposit raises it, a charge lowers it. Every line has its counterpart, so the lines of
an event sum to zero per unit; that is asserted here, and again by a statement trigger and by the reconciler.

=================  ======================================================================
settle, expire     customer −charge                        revenue:model +charge
late, not covered  customer −taken, loss:late −rest        revenue:model +charge
adjust             as settle, with the difference
overage            loss:overage −amount                    revenue:model +amount
a grant            its target +amount                      its source −amount
free tokens used   customer −taken, loss:late −rest        revenue:model +used, in their unit
quota_grant        customer +tokens                        promo:quota −tokens, in their unit
void               none
=================  ======================================================================

Which accounts a grant moves its amount between, the table ``port.GRANTS`` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

UNKNOWN_MODEL = "unknown"


class AccountKind(StrEnum):
    """The closed list of accounts."""

    CUSTOMER = "customer"
    REVENUE = "revenue"
    CLEARING = "clearing"
    PROMO = "promo"
    FEES = "fees"
    TAX = "tax"
    DISPUTES = "disputes"
    LOSS = "loss"


class Unit(StrEnum):
    """What is counted."""

    NANOS = "nanos"
    FREE_INPUT = "free_input"
    FREE_OUTPUT = "free_output"


class Entry(NamedTuple):
    """One line. ``payer_id`` only for the customer's account; ``name`` tells accounts of one kind apart."""

    kind: AccountKind
    amount: int
    name: str = ""
    payer_id: str | None = None
    unit: Unit = Unit.NANOS


Entries = tuple[Entry, ...]


def charged(*, payer_id: str, model: str, charge_nanos: int, taken_nanos: int) -> Entries:
    """A charge of which ``taken`` came from the customer; the rest is the operator's loss because it came too late."""
    assert 0 <= taken_nanos <= charge_nanos
    return _lines(
        (AccountKind.CUSTOMER, "", payer_id, -taken_nanos),
        (AccountKind.LOSS, "late", None, taken_nanos - charge_nanos),
        (AccountKind.REVENUE, model or UNKNOWN_MODEL, None, charge_nanos),
    )


def overage(*, model: str, overage_nanos: int) -> Entries:
    """What a backend used beyond the cap: earned by list price, lost by the operator, nothing to do with the customer."""
    assert overage_nanos >= 0
    return _lines(
        (AccountKind.LOSS, "overage", None, -overage_nanos),
        (AccountKind.REVENUE, model or UNKNOWN_MODEL, None, overage_nanos),
    )


def freed(*, payer_id: str, model: str, unit: Unit, used: int, taken: int) -> Entries:
    """Free tokens that a request has used, of which ``taken`` came from the customer's quota; for the rest it was too late."""
    assert 0 <= taken <= used
    return _lines(
        (AccountKind.CUSTOMER, "", payer_id, -taken),
        (AccountKind.LOSS, "late", None, taken - used),
        (AccountKind.REVENUE, model or UNKNOWN_MODEL, None, used),
        unit=unit,
    )


def quota_granted(*, payer_id: str, unit: Unit, tokens: int) -> Entries:
    """Free tokens, from the operator's promotions."""
    return _lines((AccountKind.CUSTOMER, "", payer_id, tokens), (AccountKind.PROMO, "quota", None, -tokens), unit=unit)


def granted(*, payer_id: str, provider: str, source: AccountKind, target: AccountKind, amount_nanos: int) -> Entries:
    """From one account to another, back if the amount is negative. The customer's is the payer's, any other one has the provider's name."""

    def line(kind: AccountKind, amount: int) -> tuple[AccountKind, str, str | None, int]:
        return (kind, "", payer_id, amount) if kind is AccountKind.CUSTOMER else (kind, provider, None, amount)

    return _lines(line(target, amount_nanos), line(source, -amount_nanos))


def balanced(entries: Iterable[Entry]) -> bool:
    """Invariant 1: zero per unit."""
    sums: defaultdict[Unit, int] = defaultdict(int)
    for entry in entries:
        sums[entry.unit] += entry.amount
    return not any(sums.values())


def customer_nanos(entries: Iterable[Entry]) -> int:
    """What these lines do to the customer's balance."""
    return sum([entry.amount for entry in entries if entry.kind is AccountKind.CUSTOMER and entry.unit is Unit.NANOS])


def _lines(*lines: tuple[AccountKind, str, str | None, int], unit: Unit = Unit.NANOS) -> Entries:
    assert sum([amount for _, _, _, amount in lines]) == 0
    return tuple([Entry(kind, amount, name, payer_id, unit) for kind, name, payer_id, amount in lines if amount])
