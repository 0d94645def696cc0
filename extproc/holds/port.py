"""The ports of the hold store.

Every call raises :class:`~extproc.errors.StoreRefused` (certainly not executed) or :class:`~extproc.errors.StoreUnknown`
(perhaps executed). Calls are idempotent by (hold id, owner); an ending may be repeated until it is acknowledged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from extproc.money.hold import Admission, Amendment, Checkpoint, Denied, Ending, EndResult, Verdict
from extproc.money.posting import Posting
from extproc.money.statement import Purse
from extproc.money.usage import NO_QUOTA, Quota


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


class Purses(Protocol):
    """What a client is told who asks about his money."""

    def purse(self, payer_id: str, key_id: str) -> Awaitable[Purse | Denied]:
        """As things stand now. Denied: the key is over, or one of them is missing. A future, as those of :class:`Holds`."""


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


class Tokens(NamedTuple):
    """Free tokens of a payer, of prompts and answers, or a total of them: other than a :class:`Quota` it may be negative."""

    input: int = 0
    output: int = 0


NO_TOKENS = Tokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerView:
    """A payer as Redis has it. ``spendable`` = available + credit. ``quota``: free tokens that nobody holds; ``held_quota``: the others."""

    available_nanos: int
    credit_nanos: int
    held_nanos: int
    entry_held_nanos: int
    version: int
    open_holds: int
    quota: Quota = NO_QUOTA
    held_quota: Quota = NO_QUOTA


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHold:
    """One pending hold, for ``holds list`` and the invariants."""

    hold_id: str
    payer_id: str
    key_id: str
    owner: str
    state: str  # entry | exact
    entry_nanos: int
    reserved_nanos: int
    checkpoint_nanos: int
    budget_id: str  # whose budget it uses up, "" = none
    period: str  # of that budget: all, 2026-01-31 or 2026-01
    lease_ms: int  # unix time at which it runs out
    created_ms: int
    quota: Quota = NO_QUOTA  # free tokens that it has taken


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What a shard says of itself.

    ``epoch`` is ``<run_id>.<n>`` or "" (never opened, or emptied); ``rebuilding`` the epoch that is being built, "" = none. ``run_id`` is
    that of the server which answered: a shard whose epoch does not begin with it belongs to another life of that server.
    """

    shard: int
    run_id: str
    epoch: str
    rebuilding: str

    @property
    def is_open(self) -> bool:
        return bool(self.epoch) and not self.rebuilding and self.epoch.startswith(f"{self.run_id}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reassertion:
    """An open hold as its worker knows it. An entry hold has ``entry_nanos``, an exact one ``reserved_nanos`` and ``cap_nanos``; else 0."""

    hold_id: str
    owner: str
    payer_id: str
    key_id: str
    is_exact: bool
    entry_nanos: int
    reserved_nanos: int
    cap_nanos: int
    charge_nanos: int  # of the last checkpoint
    tokens: int
    row: bytes
    created_ms: int
    quota: Quota = NO_QUOTA  # free tokens that it has taken …
    used: Quota = NO_QUOTA  # … and those that the last checkpoint has used


class Reasserting(Protocol):
    """What a gate worker needs while a shard is rebuilt."""

    async def states(self) -> list[ShardState]:
        """Of all shards, one round trip a server. Those of a server that does not answer have no run. :class:`StoreError`: none answers."""

    async def reassert(
        self, worker_id: str, shard: int, *, epoch: str, holds: Sequence[Reassertion], endings: Sequence[Posting], is_all: bool
    ) -> None:
        """Holds that this worker has open in the shard, and endings that the ledger has not confirmed. ``is_all``: there are no more.

        ``epoch`` is the one being rebuilt, or (for who comes late) the open one: then what a hold reserves is taken from what is available.
        A hold that is there already is left as it is but for a higher checkpoint and a new lease (unless its amend was lost: that is made
        up); one that has ended stays ended. An ending removes its hold if that is there, and goes into the stream without a sequence
        number; in an open shard it ends its hold as ``end`` does, if it can. Doubled or late, all of it is harmless.
        :class:`StoreFenced`: the shard has another epoch by now, or is being counted.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerState:
    """What a rebuild makes of a payer: the posted balance less what open holds have reserved; of free tokens likewise."""

    payer_id: str
    version: int
    total_nanos: int
    credit_nanos: int
    spendable_nanos: int
    held_nanos: int
    entry_held_nanos: int
    open_holds: int
    frozen: bool
    frozen_version: int
    free: Tokens = NO_TOKENS
    held: Tokens = NO_TOKENS
    total: Tokens = NO_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """A key, and the budget counters that its line of keys uses up: by span (``all``, a day, a month). ``fields`` as in ``put_key``."""

    payer_id: str
    key_id: str
    version: int
    fields: Mapping[str, str]
    open_holds: int
    budget_id: str
    spent_nanos: Mapping[str, int]
    held_nanos: Mapping[str, int]


class Rebuilding(Protocol):
    """What the leader of a rebuild needs. Every call carries the epoch that it builds; a shard with a higher one refuses it."""

    async def states(self) -> list[ShardState]:
        """As in :class:`Reasserting`."""

    async def begin(self, shard: int, *, epoch: str, cursor: str) -> None:
        """Close the shard and name the epoch that is being built. Holds and waiting events stay; ids of new events are above ``cursor``."""

    async def asserted(self, shard: int, *, epoch: str) -> frozenset[str]:
        """Workers that have said all."""

    async def count(self, shard: int, *, epoch: str) -> list[OpenHold]:
        """From now on nobody asserts; the open holds of the shard."""

    async def waiting(self, shard: int) -> int:
        """Events that are not trimmed yet: 0 = the ledger has them all."""

    async def restore(self, shard: int, *, epoch: str, payers: Sequence[PayerState], keys: Sequence[KeyState]) -> None:
        """Write these as they are to be; rate windows begin at nothing. What is not among them stays as it was: name all of the shard.

        After :meth:`count` only. ``held_nanos`` of keys: of the holds that have a ``budget_id``; the others are counted by :meth:`open`.
        """

    async def open(self, shard: int, *, epoch: str) -> None:
        """The shard serves again, under ``epoch``, after :meth:`count`; its events are numbered from 1, nothing expires for one lease."""


class Releasing(Protocol):
    """What an operator needs who ends a hold by hand."""

    async def open_holds(self, payer_id: str | None = None) -> list[OpenHold]:
        """Pending holds of one payer, or of all."""

    async def row(self, hold: OpenHold) -> bytes:
        """The request's row as the hold has it, b"" if it has ended meanwhile."""

    async def release(self, hold: OpenHold, *, row: bytes) -> EndResult:
        """End it at nothing, as an expiry: should its owner settle later, he is charged then. ``row`` goes to the ledger with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighted:
    """A hold that is still open, and what it would be charged if it expired now."""

    hold_id: str
    payer_id: str
    checkpoint_nanos: int
    cap_nanos: int
    row: bytes
    quota: Quota = NO_QUOTA  # free tokens that it has taken, and …
    used: Quota = NO_QUOTA  # … would have used


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """``closed``: ids of holds whose shard is closed: whether they are open is known when it is."""

    open: Sequence[Sighted]
    closed: Sequence[str]


class Witnessing(Protocol):
    """What the second witness needs: whoever was served is charged for it, though the worker that counted is gone."""

    async def sight(self, holds: Mapping[str, str]) -> Sight:
        """Which of these (hold → payer) are still open."""

    async def witness(self, sighted: Sequence[Sighted], *, grace_ms: int) -> int:
        """Raise checkpoints to these, capped, with their rows, and let the leases run out after ``grace_ms``; how many are still open.

        Never ends a hold: its owner may still do so, and his ending is the one that counts.
        """


class Delivery(Protocol):
    """Out of PostgreSQL into Redis: idempotent, versioned, harmless if doubled, late or reordered."""

    def epoch_of(self, payer_id: str) -> str:
        """The life of the payer's shard that a delivery would reach now, "" = none. What was brought to another one than the ledger has
        (an old master's) counts for nothing: ask before you deliver, and say it when you confirm.
        """

    async def install_payer(
        self,
        payer_id: str,
        *,
        version: int,
        total_nanos: int,
        available_nanos: int,
        credit_nanos: int,
        free: Tokens = NO_TOKENS,
        total: Tokens = NO_TOKENS,
    ) -> bool:
        """Create a payer that Redis has never had. False: it is there already, nothing was changed."""

    async def credit(self, payer_id: str, *, version: int, total_nanos: int, credit_nanos: int, total: Tokens = NO_TOKENS) -> bool:
        """If ``version`` is newer than what is stored: available += total − stored total, and of free tokens likewise (``total``). False:
        the payer is missing, or this version of it says something else, of a ledger that has lost it (alarm).
        """

    async def put_key(self, payer_id: str, key_id: str, *, version: int, fields: Mapping[str, str]) -> None:
        """Scopes that ``admit`` enforces: ``revoked`` 0|1, ``expires_ms``, ``budget_nanos`` (""), ``budget_period``,
        ``budget_id`` (whose budget it uses up; without it, its own).

        The newest version wins.
        """
