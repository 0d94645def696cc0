"""The ledger's ports, each behind its values. Pure: ids are UUID text, times unix milliseconds, amounts nanos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from extproc.ledger.entries import AccountKind
from extproc.money.hold import uuid7
from extproc.money.posting import Posting

# --- what can happen to money, and its ids


class EventType(StrEnum):
    """The closed list of what can happen to money (MONEY.md); the schema has the same list as a CHECK."""

    DEPOSIT = "deposit"
    BONUS = "bonus"
    REDEMPTION = "redemption"
    SETTLE = "settle"
    VOID = "void"
    EXPIRE = "expire"
    ADJUST = "adjust"
    OVERAGE = "overage"
    USAGE_REFUND = "usage_refund"
    PAYOUT = "payout"
    DISPUTE_OPENED = "dispute_opened"
    DISPUTE_WON = "dispute_won"
    DISPUTE_LOST = "dispute_lost"
    CORRECTION = "correction"
    WRITEOFF = "writeoff"
    BONUS_EXPIRY = "bonus_expiry"
    QUOTA_GRANT = "quota_grant"


ENDINGS = frozenset({EventType.SETTLE, EventType.VOID, EventType.EXPIRE})

NOTE = "note"  # a posting that is no event of money: the row of a request that never had a hold


def derived_id(base: str, purpose: str) -> str:
    """A UUIDv7 of the same millisecond as ``base``, the same for the same purpose every time: what follows from an event is booked once."""
    bits = int.from_bytes(sha256(f"{base}/{purpose}".encode()).digest()[:10]) >> 6
    return uuid7(unix_ms=UUID(base).int >> 80, random_bits=bits)


def id_at(unix_ms: int, purpose: str) -> str:
    """A UUIDv7 that follows from a moment and a name, for rows that stand for several causes."""
    return uuid7(unix_ms=unix_ms, random_bits=int.from_bytes(sha256(purpose.encode()).digest()[:10]) >> 6)


# --- postings: what the poster brings

START = "0-0"  # the cursor of a stream of which nothing was read

POSTINGS_MAX = 5_000  # of one transaction: its payers are locked for a fifth of a second


class ConflictReason(StrEnum):
    """Why an event could not be booked as it came."""

    OTHER_AMOUNT = "other_amount"  # the hold had ended with another amount
    OTHER_PAYER = "other_payer"
    UNKNOWN_PAYER = "unknown_payer"
    BAD_EVENT = "bad_event"  # its own fields make no sense
    BAD_ROW = "bad_row"  # the money was booked, the request's row could not be read
    REJECTED = "rejected"  # the database rejects it whatever we do


class Cursor(NamedTuple):
    """Up to where a shard's stream is posted, and the last sequence number seen there."""

    shard: int
    stream_id: str = START
    epoch: str = ""
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What became of a batch. ``cursors`` are committed: the streams may be trimmed up to them."""

    booked: int = 0  # endings
    noted: int = 0  # refusals that got a row or were added to one
    adjusted: int = 0
    repeated: int = 0  # seen before, nothing done
    conflicts: int = 0
    violations: int = 0
    overage_nanos: int = 0
    loss_nanos: int = 0
    cursors: Mapping[int, str] = field(default_factory=dict)

    def __add__(self, later: Posted) -> Posted:
        """Of two batches, one after the other."""
        return Posted(
            booked=self.booked + later.booked,
            noted=self.noted + later.noted,
            adjusted=self.adjusted + later.adjusted,
            repeated=self.repeated + later.repeated,
            conflicts=self.conflicts + later.conflicts,
            violations=self.violations + later.violations,
            overage_nanos=self.overage_nanos + later.overage_nanos,
            loss_nanos=self.loss_nanos + later.loss_nanos,
            cursors={**self.cursors, **later.cursors},
        )


class Postings(Protocol):
    """What the poster needs of the ledger."""

    async def cursors(self, shards: Sequence[int]) -> dict[int, Cursor]:
        """The committed cursor of every shard asked for."""

    async def post(self, postings: Sequence[Posting]) -> Posted:
        """Book these, of any shards, in order per shard, in one transaction with the cursors."""

    async def quarantine(self, posting: Posting, detail: str) -> Posted:
        """Put one that ``post`` rejects into ``conflicts`` and move the cursor past it."""


class Leadership(Protocol):
    """One poster per shard: not for correctness, which the cursors' locks keep, but so that settlers do not do each other's work."""

    async def held(self) -> frozenset[int]:
        """Shards that are ours, after trying for those that are not. :class:`~extproc.errors.StoreError`: none is."""

    async def release(self) -> None:
        """Let go of all of them."""


# --- outboxes: what the replay reads back


class OutboxRow(NamedTuple):
    """An ending that an outbox keeps, as it came past Redis. ``id`` rises with the time of its commit."""

    id: int
    posting: Posting


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """``below``: by outbox, every row with a lower id was read back from this ledger. ``ledger_id``: the cluster and its timeline."""

    ledger_id: str
    below: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """``missing``: rows that the ledger knows nothing of. ``below``: all before it are there."""

    below: int
    missing: Sequence[OutboxRow]


class Outboxes(Protocol):
    """What the replay needs of the ledger, besides posting."""

    async def positions(self) -> Positions:
        """Of all outboxes, and of which ledger they are."""

    async def read_back(self, outbox_id: str, rows: Sequence[OutboxRow], *, known: int, is_first: bool = False) -> ReadBack:
        """Which of these, the next in line, are booked (as they say, or by an adjust) or set aside.

        The position is moved up to the first that is neither. ``known`` is where it stands, 0 = nowhere yet;
        :class:`~extproc.errors.StoreRefused` as well if the ledger says less. ``is_first``: what is missing will be posted, which does no
        harm, and asked for again: only what has ended as it says is there, and nobody searches for what became of a whole backlog.
        """

    async def forget(self, outbox_id: str) -> None:
        """It is gone."""


# --- grants: money that moves without a hold


class Bound(StrEnum):
    """How much a grant may move at most; asked under the payer's lock."""

    NONE = "none"  # it has happened, or somebody answers for it: it may leave the balance below the credit line
    FUNDS = "funds"  # what the balance and the credit line have
    DEBT = "debt"  # what the balance lacks
    CHARGE = "charge"  # what is left of a request's charge


class GrantRule(NamedTuple):
    """``amount`` goes from ``source`` to ``target``, one of which is the customer unless he is not touched.

    The account on the other side is named by the grant's ``provider``. ``is_decision``: of an operator, who says why; and ``either_way``:
    a negative amount goes back.
    """

    source: AccountKind
    target: AccountKind
    bound: Bound = Bound.NONE
    is_decision: bool = False
    either_way: bool = False

    @property
    def customer_sign(self) -> int:
        """What an amount of 1 does to the balance."""
        return (self.target is AccountKind.CUSTOMER) - (self.source is AccountKind.CUSTOMER)


# Everything that moves money without a hold: what comes to be served one day is a row here. quota_grant is none, it is counted in tokens.
GRANTS: Final[Mapping[EventType, GrantRule]] = {
    EventType.DEPOSIT: GrantRule(AccountKind.CLEARING, AccountKind.CUSTOMER),
    EventType.BONUS: GrantRule(AccountKind.PROMO, AccountKind.CUSTOMER, is_decision=True),
    EventType.REDEMPTION: GrantRule(AccountKind.PROMO, AccountKind.CUSTOMER),
    EventType.USAGE_REFUND: GrantRule(AccountKind.REVENUE, AccountKind.CUSTOMER, Bound.CHARGE, is_decision=True),
    EventType.PAYOUT: GrantRule(AccountKind.CUSTOMER, AccountKind.CLEARING),
    EventType.DISPUTE_OPENED: GrantRule(AccountKind.CUSTOMER, AccountKind.DISPUTES),
    EventType.DISPUTE_WON: GrantRule(AccountKind.DISPUTES, AccountKind.CUSTOMER),
    EventType.DISPUTE_LOST: GrantRule(AccountKind.DISPUTES, AccountKind.CLEARING),
    EventType.CORRECTION: GrantRule(AccountKind.CLEARING, AccountKind.CUSTOMER, is_decision=True, either_way=True),
    EventType.WRITEOFF: GrantRule(AccountKind.LOSS, AccountKind.CUSTOMER, Bound.DEBT, is_decision=True),
    EventType.BONUS_EXPIRY: GrantRule(AccountKind.CUSTOMER, AccountKind.PROMO, Bound.FUNDS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Money that moves without a hold: a row of :data:`GRANTS` with an amount.

    ``id`` makes it once: the same grant again changes nothing. ``provider`` names the account on the other side (a payment provider, a
    model); ``reference`` is the provider's payment id; ``of_id`` the request whose charge it gives back.
    """

    id: str
    payer_id: str
    event_type: EventType
    amount_nanos: int
    provider: str
    reference: str | None = None
    of_id: str | None = None
    actor: str
    reason: str = ""
    occurred_ms: int

    def __post_init__(self) -> None:
        UUID(self.id)
        UUID(self.payer_id)
        assert self.event_type in GRANTS
        assert self.amount_nanos > 0 or (self.rule.either_way and self.amount_nanos < 0)
        assert self.provider
        assert self.actor
        assert self.reason or not self.rule.is_decision, f"a {self.event_type} says why"
        assert (self.of_id is not None) == (self.rule.bound is Bound.CHARGE), "what is given back is of a request"

    @property
    def rule(self) -> GrantRule:
        return GRANTS[self.event_type]

    @property
    def customer_nanos(self) -> int:
        """What it does to the balance."""
        return self.rule.customer_sign * self.amount_nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a request has cost its payer, and how much of that he got back since. ``request_id`` is its hold's id."""

    request_id: str
    payer_id: str
    model: str
    charged_nanos: int
    refunded_nanos: int

    @property
    def left_nanos(self) -> int:
        return self.charged_nanos - self.refunded_nanos


QUOTA_TOKENS_MAX: Final = 10**15  # of a grant, and of what an account may have: more than any prints in a lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaGrant:
    """Free tokens for an account; ``id`` makes it once."""

    id: str
    payer_id: str
    input_tokens: int
    output_tokens: int
    reference: str | None = None
    actor: str
    reason: str
    occurred_ms: int

    def __post_init__(self) -> None:
        UUID(self.id)
        UUID(self.payer_id)
        assert 0 <= self.input_tokens <= QUOTA_TOKENS_MAX
        assert 0 <= self.output_tokens <= QUOTA_TOKENS_MAX
        assert self.input_tokens or self.output_tokens
        assert self.actor
        assert self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """An account's money in PostgreSQL, and its free tokens. ``redis_version`` ``None``: never installed in Redis."""

    payer_id: str
    balance_nanos: int
    version: int
    credited_total: int
    credit_nanos: int
    redis_version: int | None
    free_input: int = 0
    free_output: int = 0
    credited_input: int = 0  # tokens that Redis was ever sent
    credited_output: int = 0

    @property
    def is_delivered(self) -> bool:
        return self.redis_version == self.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A grant as booked. ``fresh`` False: it had been booked before, and nothing was changed."""

    event_id: str
    fresh: bool
    balance: Balance


class Grants(Protocol):
    """What deposits and the sweep need of the ledger."""

    async def grant(self, grant: Grant) -> Granted:
        """Book it once and raise the version that Redis has to confirm. ``UsageError``: its bound, or its account, does not allow it."""

    async def grant_quota(self, grant: QuotaGrant) -> Granted:
        """The same of free tokens."""

    async def charge(self, name: str) -> Charge:
        """Of a request, by its hold's id or Envoy's. ``UsageError``: the ledger has no such request (yet)."""

    async def set_credit(self, payer_id: str, credit_nanos: int, *, actor: str, reason: str) -> Balance:
        """Change the credit line."""

    async def balance(self, payer_id: str) -> Balance | None:
        """``None``: no such account."""

    async def undelivered(self, *, after: str | None, limit: int) -> list[Balance]:
        """Balances whose version Redis has not confirmed, by payer id, after the one given."""

    async def confirm(self, payer_id: str, version: int, *, epoch: str) -> None:
        """Redis has this version (or a newer one), in this epoch; in another one than the shard has, that means nothing."""


# --- epochs: what a rebuild needs


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEpoch:
    """Which life of its server a shard belongs to, as PostgreSQL remembers. ``epoch`` is ``<run_id>.<number>``."""

    shard: int
    number: int
    epoch: str
    is_open: bool
    is_wanted: bool  # somebody wants it rebuilt


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedPayer:
    """What a rebuild has to know of a payer."""

    payer_id: str
    balance_nanos: int
    version: int
    credited_total: int
    credit_nanos: int
    frozen: bool
    frozen_version: int
    free_input: int = 0
    free_output: int = 0
    credited_input: int = 0
    credited_output: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedKey:
    """The same of a key. ``fields`` as ``holds.port.Delivery.put_key`` takes them, ``spent_nanos`` by span of its line's budget."""

    payer_id: str
    key_id: str
    version: int
    fields: Mapping[str, str]
    budget_id: str
    spent_nanos: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some payers of one shard with all their keys. ``after``: where the next page begins, ``None`` = there is none."""

    payers: Sequence[PostedPayer]
    keys: Sequence[PostedKey]
    after: str | None


class Snapshot(Protocol):
    """The ledger as it stood at one moment."""

    async def pages(self, after: Mapping[int, str]) -> dict[int, Page]:
        """Of each shard in ``after`` the next page: behind that payer, "" = from the first."""


class Epochs(Protocol):
    """What a rebuild needs of PostgreSQL."""

    async def epochs(self) -> dict[int, ShardEpoch]:
        """By shard; one that was never built is missing."""

    async def take(self, servers: Mapping[int, tuple[str, int]]) -> dict[int, str]:
        """Shard → (run id, highest number known there); the next epoch of each, which nobody else gets."""

    async def opened(self, epochs: Mapping[int, str]) -> None:
        """These are open; where somebody has taken a higher number, nothing changes."""

    async def want(self, shards: Sequence[int]) -> None:
        """Have these rebuilt by whoever leads them, though they seem to be whole. More than once is once."""

    async def miss(self, payer_id: str) -> None:
        """Redis lacks a payer that it has had: have his shard rebuilt."""

    async def workers(self, *, seen_within_s: int) -> frozenset[str]:
        """Ids of gate workers that have shown themselves lately."""

    async def cursors(self, shards: Sequence[int]) -> dict[int, Cursor]:
        """The committed cursor of every shard asked for."""

    async def endings(self, hold_ids: Sequence[str]) -> list[Posting]:
        """Of these holds those that have ended already, as events past Redis: booked again they change nothing."""

    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """For as long as the block lasts."""


# --- months (UTC), named by their first day, that are closed


def next_month(month: date) -> date:
    """Its first day."""
    return (month + timedelta(days=32)).replace(day=1)


def midnight(day: date) -> datetime:
    """When it begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


class PeriodSum(NamedTuple):
    """What a month did to one account; all customers together are one. ``sum`` in nanos, or tokens of a free quota."""

    kind: str
    name: str
    unit: str
    sum: int


class PeriodSums(NamedTuple):
    """``late``: how many of the events had occurred in months that were closed before they came."""

    events: int
    late: int
    lines: tuple[PeriodSum, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A closed month, by its first day. Not ``is_complete``: its sums are not frozen yet, the close was cut off."""

    month: date
    closed_at: str
    actor: str
    reason: str
    is_complete: bool
    events: int
    late: int


class Periods(Protocol):
    """What closing a month needs of the ledger."""

    async def check(self, month: date) -> None:
        """``UsageError``: this month cannot be closed."""

    async def close(self, month: date, *, audit_id: str, actor: str, reason: str) -> None:
        """From now on nothing is booked into it."""

    async def sum_up(self, month: date, *, progress: Callable[[date], None]) -> PeriodSums:
        """What was booked into it; ``progress`` hears of each day."""

    async def freeze(self, month: date, sums: PeriodSums) -> None:
        """Once."""


# --- people: what they ask, and what they have done


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that the ledger knows of one request. Rows are mappings of column to value; ``price`` is the price in full."""

    request: Mapping[str, Any]
    price: str | None
    events: tuple[Mapping[str, Any], ...]
    entries: tuple[Mapping[str, Any], ...]


class Audit(Protocol):
    """Who did what to whom, and why, where the deed itself is not in the ledger."""

    async def tell(self, audit_id: str, *, actor: str, action: str, subject: str, reason: str, detail: Mapping[str, Any]) -> None:
        """Before it is done."""
