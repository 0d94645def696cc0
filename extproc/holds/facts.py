"""What a shard of the hold store has at one moment, as the reconciler sees it. Pure values; amounts in nanos, times in unix ms of Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from extproc.holds.port import NO_TOKENS, Tokens
from extproc.money.usage import NO_QUOTA, Quota


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerFacts:
    """A payer's hash. ``spendable`` = available + credit; ``total`` is what was ever credited to it; ``…_tokens`` the same of his quota."""

    version: int
    total_nanos: int
    spendable_nanos: int
    credit_nanos: int
    held_nanos: int
    entry_held_nanos: int
    open_holds: int
    total_tokens: Tokens = NO_TOKENS
    free_tokens: Tokens = NO_TOKENS
    held_tokens: Tokens = NO_TOKENS

    @property
    def available_nanos(self) -> int:
        return self.spendable_nanos - self.credit_nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldFacts:
    """A member of the lease set. ``state`` is ``entry`` or ``exact`` of an open hold; anything else should have no lease."""

    hold_id: str
    lease_ms: int
    state: str
    payer_id: str
    key_id: str
    entry_nanos: int
    reserved_nanos: int
    cap_nanos: int
    checkpoint_nanos: int
    budget: str  # "payer:budget id:span" whose counter it uses up, "" = none
    created_ms: int
    quota: Quota = NO_QUOTA  # free tokens that it has taken
    used: Quota = NO_QUOTA  # of its checkpoint

    @property
    def is_open(self) -> bool:
        return self.state in ("entry", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An event that the ledger has not posted. ``seq`` 0: it came after the end, and took nothing in Redis."""

    stream_id: str
    kind: str
    hold_id: str
    payer_id: str
    charge_nanos: int
    epoch: str
    seq: int
    used: Quota = NO_QUOTA


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFacts:
    """A budget's counter of one period: ``used`` = spent + held."""

    used_nanos: int
    held_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """All of it from one script. ``payers`` and ``keys`` (by ``payer:key``, their open holds) only those asked for, ``None`` = missing."""

    shard: int
    epoch: str
    rebuilding: str
    seq: int
    quiet_ms: int  # nothing expires before
    now_ms: int
    is_whole: bool  # neither holds nor events were too many to look at
    leases: int
    holds: Sequence[HoldFacts]
    budgets: Mapping[str, BudgetFacts]
    waiting: Sequence[Waiting]
    payers: Mapping[str, PayerFacts | None]
    keys: Mapping[str, int | None]


class HoldFactsReader(Protocol):
    """What the reconciler needs of the hold store."""

    async def shard(self, shard: int, *, cursor: str, payers: Iterable[str] = (), keys: Iterable[str] = ()) -> ShardFacts:
        """One moment of a shard, with the events beyond ``cursor``. :class:`~extproc.errors.StoreError`."""

    async def open_holds(self) -> int:
        """Of all shards: the sizes of their lease sets."""
