"""Facts of the hold store for the reconciler: read, never written, a shard at one moment by one script."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from extproc.holds.facts import BudgetFacts, HoldFacts, PayerFacts, ShardFacts, Waiting
from extproc.holds.port import Tokens
from extproc.holds.words import quota_of
from extproc.money.usage import Quota
from extproc.stores.pipeline import Client
from extproc.stores.scripts import load_scripts
from extproc.stores.shards import TAGS

HOLDS_MAX: Final = 4_000  # of a shard at one look: a script of 4 ms; with 250,000 open holds nobody counts them every minute
EVENTS_MAX: Final = 2_000  # beyond the cursor: after an outage of PostgreSQL the look is put off until the poster has caught up


class RedisFacts:
    """The port HoldFactsReader."""

    def __init__(self, pipeline: Client) -> None:
        self._pipeline = pipeline
        self._script = load_scripts("extproc.holds.lua")["facts"]
        pipeline.register([self._script])

    async def shard(self, shard: int, *, cursor: str, payers: Iterable[str] = (), keys: Iterable[str] = ()) -> ShardFacts:
        named, of_keys = list(payers), list(keys)
        args: list[str | bytes | int] = [cursor, HOLDS_MAX, EVENTS_MAX, len(named), *named, *of_keys]
        own, leases, holds, budgets, events, found, opened = await self._pipeline.call(self._script, TAGS[shard], args)
        epoch, rebuilding, seq, quiet, seen, now = own
        return ShardFacts(
            shard=shard,
            epoch=_text(epoch),
            rebuilding=_text(rebuilding),
            seq=int(seq or 0),
            quiet_ms=int(quiet or 0),
            now_ms=max(int(now), int(seen or 0)),
            is_whole=leases <= HOLDS_MAX and len(events) < EVENTS_MAX,
            leases=leases,
            holds=[_hold(hold_id, lease, fields) for hold_id, lease, fields in holds],
            budgets={_text(name): BudgetFacts(used_nanos=int(used or 0), held_nanos=int(held or 0)) for name, used, held in budgets},
            waiting=[_waiting(event) for event in events],
            payers={payer: _payer(fields) for payer, fields in zip(named, found, strict=True)},
            keys={key: None if version is None else int(n or 0) for key, (version, n) in zip(of_keys, opened, strict=True)},
        )

    async def open_holds(self) -> int:
        return sum(await asyncio.gather(*(self._pipeline.execute("ZCARD", f"{tag}:leases") for tag in TAGS)))


def _payer(fields: Sequence[Any]) -> PayerFacts | None:
    if fields[0] is None:
        return None
    version, total, spendable, credit, held, entry_held, opened, *tokens = (int(field or 0) for field in fields)
    return PayerFacts(
        version=version,
        total_nanos=total,
        spendable_nanos=spendable,
        credit_nanos=credit,
        held_nanos=held,
        entry_held_nanos=entry_held,
        open_holds=opened,
        total_tokens=Tokens(*tokens[:2]),
        free_tokens=Tokens(*tokens[2:4]),
        held_tokens=Tokens(*tokens[4:]),
    )


def _hold(hold_id: bytes, lease: bytes, fields: Sequence[Any]) -> HoldFacts:
    state, _, payer, key, entry, reserved, cap, checkpoint, budget, period, created, free, used = fields
    return HoldFacts(
        hold_id=_text(hold_id),
        lease_ms=int(float(lease)),
        state=_text(state),
        payer_id=_text(payer),
        key_id=_text(key),
        entry_nanos=int(entry or 0),
        reserved_nanos=int(reserved or 0),
        cap_nanos=int(cap or 0),
        checkpoint_nanos=int(checkpoint or 0),
        budget=":".join(map(_text, (payer, budget or key, period))) if period else "",
        created_ms=int(created or 0),
        quota=quota_of(free),
        used=quota_of(used),
    )


def _waiting(event: Sequence[bytes]) -> Waiting:
    """What our scripts did not write has no number and no charge: the poster sets it aside."""
    stream_id, kind, hold, payer, charge, epoch, seq, free = (_text(field) for field in event)
    given, _, made = free.partition(":")
    return Waiting(
        stream_id=stream_id,
        kind=kind,
        hold_id=hold,
        payer_id=payer,
        charge_nanos=_number(charge),
        epoch=epoch,
        seq=_number(seq),
        used=Quota(input_tokens=_number(given), output_tokens=_number(made)),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _text(field: bytes | None) -> str:
    return (field or b"").decode("utf-8", "replace")
