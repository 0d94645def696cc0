"""Accounts and keys as values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from extproc.money.hold import NO_LIMITS, Limits
from extproc.money.price import FACTOR_ONE


class Period(StrEnum):
    """In which a key's budget counts. UTC days and months."""

    NONE = "none"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an account's terms become at a moment (unix ms): another tier, or another price factor (millionths). ``None``: stays."""

    at_ms: int
    tier: str | None = None
    price_factor: int | None = None

    @property
    def sets(self) -> dict[str, Any]:
        """Field → value."""
        return {name: value for name in ("tier", "price_factor") if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``users.id`` is the payer of everything its keys do. ``changes``: of tier and price factor (:func:`as_of`)."""

    id: str
    name: str
    email: str
    tier: str
    created_at: str = ""
    frozen: bool = False
    price_factor: int = FACTOR_ONE
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a look-up by hash returns: identity and scopes, no secret. Empty ``models`` or ``networks`` = no restriction.

    ``price_factor``: the account's own, in millionths, beside that of its tier. ``changes`` of both: :func:`as_of`.
    ``expires_ms`` 0 = never. Revocation, expiry and budget are enforced by ``admit`` from Redis; here they serve early refusals only.
    """

    id: str
    payer_id: str
    name: str
    tier: str
    price_factor: int = FACTOR_ONE
    models: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()  # CIDR, v4 or v6
    expires_ms: int = 0
    revoked: bool = False
    limits: Limits = NO_LIMITS
    budget_nanos: int | None = None
    budget_period: Period = Period.NONE
    sandbox: bool = False
    changes: tuple[Change, ...] = ()


Served = TypeVar("Served", Account, Key)


def as_of(one: Served, unix_ms: int) -> Served:
    """With the terms of that moment: changes that are over by then count more than what stands beside them."""
    for change in one.changes:
        if change.at_ms <= unix_ms:
            one = replace(one, **change.sets)
    return one


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDelivery:
    """A key on its way to Redis. ``hash`` is the SHA-256 of its secret; a newer ``version`` replaces an older one.

    ``budget_id``: the first key of its line, whose budget those that replace it go on with.
    """

    key: Key
    hash: bytes
    version: int
    budget_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeDelivery:
    """An account's freeze (or thaw) on its way to Redis."""

    payer_id: str
    frozen: bool
    version: int
