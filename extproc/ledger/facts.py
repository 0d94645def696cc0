"""What the ledger has, as the reconciler sees it. Pure values; ids are UUID text, amounts nanos; rows are mappings of column to value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from extproc.ledger.port import Cursor

FIRST_ID = "00000000-0000-0000-0000-000000000000"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedEvent:
    """An event with all that belongs to it. ``request``: of an ending, with ``price`` in full; ``base``: what its ``of_id`` names."""

    event: Row
    entries: Sequence[Row]
    request: Row | None
    followers: Sequence[Row]
    base: Row | None

    @property
    def id(self) -> str:
        return str(self.event["id"])

    @property
    def account(self) -> str:
        return str(self.event["user_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A row of an ended request, or an entry, without its event."""

    what: str  # row | entry
    id: str
    account: str
    amount_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSum:
    """A balance and what its entries say."""

    payer_id: str
    balance_nanos: int
    entries_nanos: int
    free: tuple[int, int] = (0, 0)  # tokens of input and output that are left …
    entries_free: tuple[int, int] = (0, 0)  # … and what their entries say


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountMoney:
    """What Redis is compared with. ``redis_version`` ``None``: it was never installed there."""

    payer_id: str
    balance_nanos: int
    credit_nanos: int
    version: int
    credited_total: int
    redis_version: int | None
    free_input: int = 0
    free_output: int = 0
    credited_input: int = 0
    credited_output: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMoney:
    """Accounts of one shard and the shard's cursor, of one moment. ``keys``: ``payer:key`` of those that Redis was told of."""

    cursor: Cursor
    accounts: Mapping[str, AccountMoney]
    keys: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place in the order of booking. ``moment`` as PostgreSQL writes it."""

    moment: str
    after: str = FIRST_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A full reconciliation. ``after``: where its ``phase`` goes on."""

    id: int
    started_at: str
    started_ms: int
    finished_ms: int | None
    phase: str
    after: str
    looked_at: int
    findings: int


class LedgerFactsReader(Protocol):
    """What the reconciler needs of the ledger. Each call is one transaction of one moment. :class:`~extproc.errors.StoreError`."""

    async def events_by_id(self, after: str, *, limit: int) -> list[BookedEvent]:
        """The next events in the order of ids; none: that was all."""

    async def events_by_time(self, mark: Mark, *, limit: int, payer: str | None = None) -> list[BookedEvent]:
        """The next events in the order of booking, of all accounts or of one."""

    async def orphans(self, after: str, last: str) -> list[Orphan]:
        """Between these ids, at most a page."""

    async def accounts(self, after: str, *, limit: int) -> list[str]:
        """The next payer ids."""

    async def sums(self, payers: Sequence[str], *, lines_max: int | None) -> list[AccountSum]:
        """``lines_max``: accounts with more entries are left out; ``None``: whatever it takes."""

    async def shard_money(self, shard: int, payers: Sequence[str]) -> ShardMoney:
        """Of these payers of a shard."""

    async def named_causes(self, payers: Sequence[str]) -> frozenset[str]:
        """Those of them that something other than a hold may have taken below their line."""

    async def violations(self, since: str) -> Sequence[Row]:
        """Rows of ``fence_violations``."""

    async def conflicts(self) -> Sequence[Row]:
        """Those that are not resolved."""
