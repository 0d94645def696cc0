"""The ports of the hold store.

Every call raises :class:`~extproc.errors.StoreRefused` (certainly not executed) or :class:`~extproc.errors.StoreUnknown`
(perhaps executed). Calls are idempotent by (hold id, owner); an ending may be repeated until it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from extproc.money.hold import Admission, Amendment, Checkpoint, Ending, EndResult, Verdict
from extproc.money.posting import Posting


class Holds(Protocol):
    """What the gate needs. Methods return at once; the awaitable is a future, so that the calls of one loop tick share a pipeline."""

    def admit(self, admission: Admission) -> Awaitable[Verdict]:
        """Limits, a concurrency slot, a lease and a soft entry hold."""

    def amend(self, amendment: Amendment) -> Awaitable[Verdict]:
        """Entry hold → exact hold. Refused for ended and foreign holds."""

    def beat(self, checkpoints: Sequence[Checkpoint]) -> Awaitable[None]:
        """Renew the leases of these holds and store what changed. Ended, unknown and foreign holds are left alone."""

    def end(self, ending: Ending) -> Awaitable[EndResult]:
        """Settle or void, once; the event for the ledger is written in the same script."""

    def note(self, payer_id: str, row: bytes) -> Awaitable[None]:
        """Hand the ledger the row of a request that never had a hold (a refusal). It has no sequence number and no money.

        ``StoreRefused`` as well when too many events wait for the ledger: the row is dropped.
        """


class EventStream(Protocol):
    """What the poster needs."""

    async def read(self, cursors: Mapping[int, str], *, count: int, block_ms: int) -> list[Posting]:
        """Events after each shard's cursor (``"0-0"`` = from the start), in order per shard, at most ``count`` a shard."""

    async def trim(self, shard: int, stream_id: str) -> None:
        """Drop everything up to and including ``stream_id``: it is committed in the ledger."""


class Reaping(Protocol):
    """What the reaper needs."""

    async def expire(self, shard: int) -> list[str]:
        """End every hold of the shard whose lease has run out, at its last checkpoint (nothing yet: void). Hold ids that were ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerView:
    """A payer as Redis has it. ``spendable`` = available + credit."""

    available_nanos: int
    credit_nanos: int
    held_nanos: int
    entry_held_nanos: int
    version: int
    open_holds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHold:
    """One pending hold, for ``holds list`` and the invariants."""

    hold_id: str
    payer_id: str
    key_id: str
    state: str  # entry | exact
    reserved_nanos: int
    checkpoint_nanos: int
    lease_ms: int  # unix time at which it runs out


class Delivery(Protocol):
    """Out of PostgreSQL into Redis: idempotent, versioned, harmless if doubled, late or reordered."""

    async def install_payer(self, payer_id: str, *, version: int, total_nanos: int, available_nanos: int, credit_nanos: int) -> bool:
        """Create a payer that Redis has never had. False: it is there already, nothing was changed."""

    async def credit(self, payer_id: str, *, version: int, total_nanos: int, credit_nanos: int) -> bool:
        """If ``version`` is newer than what is stored: available += total − stored total. False: the payer is missing (alarm)."""

    async def put_key(self, payer_id: str, key_id: str, *, version: int, fields: Mapping[str, str]) -> None:
        """Scopes that ``admit`` enforces: ``revoked`` 0|1, ``expires_ms``, ``budget_nanos`` (""), ``budget_period``,
        ``budget_id`` (whose budget it uses up; without it, its own).

        The newest version wins.
        """

    async def view(self, payer_id: str) -> PayerView | None:
        """``None``: Redis does not have this payer."""

    async def open_holds(self, payer_id: str | None = None) -> list[OpenHold]:
        """Pending holds of one payer, or of all."""
