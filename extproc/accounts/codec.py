"""Keys between their three homes: a row of ``credentials``, JSON in Redis, :class:`Key` in the process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extproc.accounts.model import Key, KeyDelivery, Period
from extproc.accounts.terms import changes_of, plain
from extproc.money.hold import Limits

_LIMITS = ("requests_per_minute", "requests_per_hour", "tokens_per_minute", "concurrent_requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What Redis keeps under a key's hash: the key, and when it came out of PostgreSQL."""

    key: Key
    loaded_ms: int


def key_of_row(row: Mapping[str, Any]) -> Key:
    """A row of the queries in ``sql/keys.sql``."""
    return Key(
        id=row["id"],
        payer_id=row["user_id"],
        name=row["name"],
        tier=row["tier"],
        price_factor=row["price_factor"],
        changes=changes_of(row["changes"]),
        models=frozenset(row["models"]),
        networks=tuple(row["networks"]),
        expires_ms=row["expires_ms"],
        revoked=row["revoked"],
        limits=Limits(**{name: row[name] for name in _LIMITS}),
        budget_nanos=row["budget_nanos"],
        budget_period=Period(row["budget_period"]),
        sandbox=row["sandbox"],
    )


def delivery_of_row(row: Mapping[str, Any]) -> KeyDelivery:
    """What Redis has to be told of this key."""
    return KeyDelivery(key=key_of_row(row), hash=row["hash"], version=row["version"], budget_id=row["budget_id"])


def enforced(delivery: KeyDelivery) -> dict[str, str]:
    """The scopes that ``admit`` enforces, as ``Delivery.put_key`` takes them."""
    key = delivery.key
    return {
        "revoked": "1" if key.revoked else "0",
        "expires_ms": str(key.expires_ms),
        "budget_nanos": "" if key.budget_nanos is None else str(key.budget_nanos),
        "budget_period": key.budget_period.value,
        "budget_id": delivery.budget_id,
    }


def to_json(shared: Shared) -> bytes:
    """No secret, no hash: who reads Redis learns scopes."""
    key = shared.key
    return json.dumps(
        {
            "id": key.id,
            "payer_id": key.payer_id,
            "name": key.name,
            "tier": key.tier,
            "price_factor": key.price_factor,
            "changes": plain(key.changes),
            "models": sorted(key.models),
            "networks": key.networks,
            "expires_ms": key.expires_ms,
            "revoked": key.revoked,
            "limits": {name: getattr(key.limits, name) for name in _LIMITS},
            "budget_nanos": key.budget_nanos,
            "budget_period": key.budget_period,
            "sandbox": key.sandbox,
            "loaded_ms": shared.loaded_ms,
        },
        separators=(",", ":"),
    ).encode()


def from_json(data: bytes) -> Shared | None:
    """``None``: written by a program that knew other fields; PostgreSQL is asked instead."""
    try:
        fields = json.loads(data)
        loaded_ms = fields.pop("loaded_ms")
        key = Key(
            **{
                **fields,
                "models": frozenset(fields["models"]),
                "networks": tuple(fields["networks"]),
                "limits": Limits(**fields["limits"]),
                "budget_period": Period(fields["budget_period"]),
                "changes": changes_of(fields.get("changes", ())),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Shared(key=key, loaded_ms=loaded_ms)
