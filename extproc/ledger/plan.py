"""What a batch of postings does to the ledger, decided in memory: no IO, no clock.

The adapter locks the payers' balances and reads which holds have ended already; everything else is decided here, posting by posting, and
written afterwards by a few set-wise statements.

====================================  ==========================================================================
the hold has                          this ending becomes
====================================  ==========================================================================
not ended                             an event of its kind, its entries, the request's row (and ``overage``, if any)
ended with the same                   nothing: the same event again
ended with more, this is an expire    nothing: a checkpoint is what was known on the way, the ending knew better
expired for less                      one ``adjust`` over the difference; the row becomes this one's
ended otherwise                       a conflict
====================================  ==========================================================================

**In any order.** An ending comes through Redis (a number, ``seq`` > 0), or past it (0: from an outbox, reasserted into a stream, or late
after its expire), and mostly both ways. Whatever it becomes, Redis is told, by a versioned credit, what it took for this event (the charge
if it has a number, else nothing) less what was booked. So what Redis has taken and was told is what is booked, however often it comes:

========================================  ==========================  ================================  ================
first, then                               booked                      told                              the end
========================================  ==========================  ================================  ================
settle 70 by Redis, 70 past it            70, nothing                 0, 0                              70
settle 70 past Redis, 70 by it            70, nothing                 −70, +70                          70
expire 40 by Redis, settle 70 past it     40, adjust 30               0, −30                            70
settle 70 past Redis, expire 40 by it     70, nothing                 −70, +40                          70
expire 40, settle 70, each by Redis       40, adjust 30               0, +40 (it took 40, then 70)      70
settle 70, expire 40, each by Redis       70, nothing                 0, +40                            70
void by Redis or past it, the other way   0, nothing                  0, 0                              0
expire 0 by Redis, void past it           0, nothing                  0, 0                              0
expire 0 by Redis, expire 40 past it      0, adjust 40                0, −40                            40
expire 40 past Redis, expire 0 by it      40, nothing                 −40, 0                            40
void past Redis, expire 40 by it          0, conflict                 0, +40                            0, alarm
expire 90 by Redis, settle 70 past it     90, conflict                0, 0                              90, alarm
settle 70 past Redis, expire 90 by it     70, conflict                −70, +90                          70, alarm
settle 70 by Redis, void past it          70, conflict                0, 0                              70, alarm
void by Redis, settle 70 past it          0, conflict                 0, 0                              0, alarm
========================================  ==========================  ================================  ================

Two expires of one hold are two checkpoints: Redis may have one of a request that was admitted there and then served on a worker's own
credit, and the outbox the other, of the loan. A hold that expired twice for different amounts is adjusted already; the settle that should
have kept the second from coming is then a conflict, if it is above both.

**Free tokens** go the same ways as nanos, in their own units: what an ending has used is its charge *and* these tokens. It says more than
another one if nothing of it is less and something more, so both are in an adjust; and of a quota, too, what comes late takes what is there.

"Each by Redis": it lost what it knew of an ending after the ledger had read it. Whatever comes third meets one of these cases again.

**No debt that nobody has named.** A late charge (an adjust, or an ending that came past Redis) was not covered by a hold any more: it takes
what the balance and the credit line have, and the rest is the operator's loss. What Redis had reserved was set aside: it is taken whole,
although a payout, a dispute, a correction or a lowered line may have emptied the account meanwhile, as far as those go. Beyond them the
money was promised twice (a late charge took it, a hold came back after a rebuild, two servers each believed to be the master): a loss, too.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from extproc.ledger import entries as book
from extproc.ledger.port import ENDINGS, NOTE, ConflictReason, EventType, derived_id, id_at
from extproc.ledger.rows import INT8_MAX, NOTHING_RARE, UNIX_MS_MAX, are_uuids_or_empty, empty_row, is_uuid, parse_row
from extproc.money.posting import Posting

REFUSALS_PER_MINUTE = 10  # rows per key, reason and minute (MONEY.md); the rest share one row with a count
MINUTE_MS = 60_000
QUARTER_MS = 900_000  # no time zone's midnight lies within one
DETAIL_MAX = 500
NO_TOKENS: Final = (0, 0)  # of input and output
SEQ_MAX = INT8_MAX

Record = dict[str, Any]  # one row for a table, by column
Used = tuple[int, int, int]  # nanos, and free tokens of input and output
RefusalKey = tuple[str, str, int]  # key (or payer, or ""), reason, start of the minute in unix ms


class Ended(NamedTuple):
    """An ending that is in the ledger. ``adjusted_to`` is what an adjust has made of it; ``overage`` whether that was booked.

    ``loss_nanos``: of ``charge_nanos``, borne by the operator. Free tokens are those of the adjust already.
    """

    kind: str
    payer_id: str
    charge_nanos: int
    adjusted_to: int | None = None
    has_overage: bool = False
    loss_nanos: int = 0
    free_input: int = 0
    free_output: int = 0

    @property
    def used(self) -> Used:
        """With its adjust."""
        return self.charge_nanos if self.adjusted_to is None else self.adjusted_to, self.free_input, self.free_output


@dataclass(frozen=True, slots=True, kw_only=True)
class Funds:
    """A payer's balance, locked for this batch. ``named_nanos``: what named events took of it, and of its line, in a hold's lifetime."""

    balance_nanos: int
    credit_nanos: int
    named_nanos: int = 0
    free: tuple[int, int] = (0, 0)  # tokens of his quota


class Screened(NamedTuple):
    """A posting whose fields make sense, with its row. ``row_fault``: the row was unreadable and replaced by an empty one."""

    posting: Posting
    row: Record
    row_fault: str = ""

    @property
    def row_id(self) -> str:
        """Of the row that it may leave in ``requests``: its hold's, or that of an exchange which never had one; "" if it has none."""
        hold_id = self.posting.hold_id
        return hold_id if self.posting.kind != NOTE or is_uuid(hold_id) else str(self.row["id"])


@dataclass(slots=True)
class Plan:
    """Rows to write, per table, and counts. ``deltas``: payer → [change of balance, change that Redis has yet to be told].

    ``quotas``: payer → the same of free tokens: input, output, and what Redis has yet to be told of either; of few payers.
    ``spent``: (key, quarter of an hour of the hold since 1970) → nanos, whether the key has a budget or not.
    """

    prices: dict[str, str] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    entries: list[Record] = field(default_factory=list)
    requests: list[Record] = field(default_factory=list)
    replaced: list[Record] = field(default_factory=list)
    refusals: dict[str, Record] = field(default_factory=dict)
    conflicts: list[Record] = field(default_factory=list)
    deltas: dict[str, list[int]] = field(default_factory=dict)
    quotas: dict[str, list[int]] = field(default_factory=dict)
    spent: defaultdict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    booked: int = 0
    noted: int = 0
    adjusted: int = 0
    repeated: int = 0
    overage_nanos: int = 0
    loss_nanos: int = 0


def screen(postings: Iterable[Posting]) -> tuple[list[Screened], list[Record]]:
    """Tell what can be booked from what goes to ``conflicts`` as it is."""
    good, bad = [], []
    for posting in postings:
        fault = fault_of(posting)
        if fault:
            bad.append(conflict(posting, ConflictReason.BAD_EVENT, fault))
            continue
        try:
            row, row_fault = parse_row(posting.row), ""
        except ValueError as error:
            row, row_fault = empty_row(), str(error)
        good.append(Screened(posting, row, row_fault))
    return good, bad


def short_of_money(screened: Iterable[Screened], funds: Mapping[str, Funds]) -> list[str]:
    """Payers of whom a batch asks for more than they have: of them one must know what named events took."""
    asked: defaultdict[str, int] = defaultdict(int)
    for posting, _, _ in screened:
        asked[posting.payer_id] += posting.charge_nanos
    return [payer for payer, one in funds.items() if asked[payer] > one.balance_nanos + one.credit_nanos]


def refusal_key(screened: Screened) -> RefusalKey:
    """What bounds the rows of refusals."""
    row = screened.row
    minute = (row["created_ms"] or screened.posting.occurred_ms) // MINUTE_MS * MINUTE_MS
    return row["creds_id"] or row["user_id"], row["error_code"] or row["would_deny"], minute


class Planner:
    """Decides one batch. ``ended`` and ``rows`` are kept up to date while it goes, so that two endings of one hold may share a batch.

    ``rows``: ids that ``requests`` has already: the first row of a request stays (a refusal may have left it before its hold was voided).
    """

    def __init__(
        self, *, funds: Mapping[str, Funds], ended: Mapping[str, Ended], rows: Collection[str], refused: Mapping[RefusalKey, int]
    ) -> None:
        self._funds = funds
        self._ended = dict(ended)
        self._rows = set(rows)
        self._refused = defaultdict(int, refused)
        self.plan = Plan()

    def take(self, screened: Screened) -> None:
        """The next posting."""
        posting = screened.posting
        if screened.row_fault:
            self.plan.conflicts.append(conflict(posting, ConflictReason.BAD_ROW, screened.row_fault))
        self._price(screened.row)
        if posting.kind == NOTE:
            self._note(screened)
            return
        if posting.payer_id not in self._funds:
            self.plan.conflicts.append(conflict(posting, ConflictReason.UNKNOWN_PAYER, "no such account"))
            return
        if posting.seq:
            self._deltas(posting.payer_id)[1] += posting.charge_nanos  # Redis has taken it; what is booked of it, _event tells
            if posting.free_input or posting.free_output:
                quota = self._quota(posting.payer_id)
                quota[2] += posting.free_input
                quota[3] += posting.free_output
        before = self._ended.get(posting.hold_id)
        if before is None:
            self._first(screened)
        elif before.payer_id != posting.payer_id:
            self.plan.conflicts.append(conflict(posting, ConflictReason.OTHER_PAYER, f"ended by payer {before.payer_id}"))
        else:
            self._second(screened, before)

    def _first(self, screened: Screened) -> None:
        posting, row = screened.posting, screened.row
        charge = posting.charge_nanos
        taken = self._of_hold(posting) if posting.seq else self._affordable(posting.payer_id, charge)
        lines = book.charged(payer_id=posting.payer_id, model=row["model"], charge_nanos=charge, taken_nanos=taken)
        tokens = NO_TOKENS
        if posting.free_input or posting.free_output:
            tokens = (posting.free_input, posting.free_output)
            lines += self._freed(posting, row, tokens)
        self._event(posting, event_id=posting.hold_id, event_type=posting.kind, charge=charge, tokens=tokens, lines=lines)
        overage = self._overage(posting, row)
        self._row(_request(posting, row, cost=taken, loss=charge - taken, overage=overage))
        self.plan.booked += 1
        self.plan.loss_nanos += charge - taken
        self._ended[posting.hold_id] = Ended(posting.kind, posting.payer_id, charge, None, overage > 0, charge - taken, *tokens)

    def _second(self, screened: Screened, before: Ended) -> None:
        posting = screened.posting
        booked, came = before.used, posting.used
        if came == booked or (posting.kind == EventType.EXPIRE and _is_within(came, booked)):
            self.plan.repeated += 1
        elif before.kind == EventType.EXPIRE and before.adjusted_to is None and _is_within(booked, came):
            self._adjust(screened, before)
        else:
            detail = f"{before.kind} of {_said(booked)} is booked, {posting.kind} of {_said(came)} came"
            self.plan.conflicts.append(conflict(posting, ConflictReason.OTHER_AMOUNT, detail))

    def _adjust(self, screened: Screened, before: Ended) -> None:
        posting, row = screened.posting, screened.row
        difference = posting.charge_nanos - before.charge_nanos
        taken = self._affordable(posting.payer_id, difference)
        tokens = (posting.free_input - before.free_input, posting.free_output - before.free_output)
        lines = book.charged(payer_id=posting.payer_id, model=row["model"], charge_nanos=difference, taken_nanos=taken)
        self._event(
            posting,
            event_id=derived_id(posting.hold_id, EventType.ADJUST),
            event_type=EventType.ADJUST,
            charge=difference,
            tokens=tokens,
            lines=lines + self._freed(posting, row, tokens),
            of_id=posting.hold_id,
            metadata={"charged": before.charge_nanos, "true_cost": posting.charge_nanos},
        )
        overage = 0 if before.has_overage else self._overage(posting, row)
        loss = before.loss_nanos + difference - taken
        self.plan.replaced.append(_request(posting, row, cost=posting.charge_nanos - loss, loss=loss, overage=overage))
        self.plan.adjusted += 1
        self.plan.loss_nanos += difference - taken
        self._ended[posting.hold_id] = Ended(
            kind=before.kind,
            payer_id=before.payer_id,
            charge_nanos=before.charge_nanos,
            adjusted_to=posting.charge_nanos,
            has_overage=before.has_overage or overage > 0,
            loss_nanos=loss,
            free_input=posting.free_input,
            free_output=posting.free_output,
        )

    def _overage(self, posting: Posting, row: Record) -> int:
        """Book what was used beyond the cap. A sandbox or shadow request has no cap to break: its list price is no overage."""
        overage: int = row["overage_nanos"]
        if not overage or posting.kind == EventType.VOID or row["sandbox"] or row["shadow"]:
            return 0
        self._event(
            posting,
            event_id=derived_id(posting.hold_id, EventType.OVERAGE),
            event_type=EventType.OVERAGE,
            charge=overage,
            lines=book.overage(model=row["model"], overage_nanos=overage),
            of_id=posting.hold_id,
        )
        self.plan.overage_nanos += overage
        return overage

    def _event(
        self,
        posting: Posting,
        *,
        event_id: str,
        event_type: str,
        charge: int,
        lines: book.Entries,
        tokens: tuple[int, int] = NO_TOKENS,
        of_id: str | None = None,
        metadata: Record | None = None,
    ) -> None:
        amount = book.customer_nanos(lines)
        deltas = self._deltas(posting.payer_id)
        deltas[0] += amount
        deltas[1] += amount
        if amount and posting.key_id:
            self.plan.spent[posting.key_id, _unix_ms_of(posting.hold_id) // QUARTER_MS] -= amount
        event = {
            "id": event_id,
            "user_id": posting.payer_id,
            "event_type": event_type,
            "amount": amount,
            "balance_after": self._funds[posting.payer_id].balance_nanos + deltas[0],
            "charge_nanos": charge,
            "of_id": of_id,
            "shard": posting.shard,
            "epoch": posting.epoch,
            "seq": posting.seq or None,
            "metadata": metadata or {},
            "occurred_ms": posting.occurred_ms,
        }
        if of_id is not None:
            event["seq"] = None  # the number belongs to the ending
        if tokens != NO_TOKENS:
            event["free_input"], event["free_output"] = tokens
        self.plan.events.append(event)
        self.plan.entries.extend(entry_rows(event_id, lines))

    def _freed(self, posting: Posting, row: Record, used: tuple[int, int]) -> book.Entries:
        """Free tokens: of the payer's quota, as far as it goes. There is nothing that may have taken them but other requests."""
        if used == NO_TOKENS:
            return ()
        quota, free = self._quota(posting.payer_id), self._funds[posting.payer_id].free
        lines: book.Entries = ()
        for which, (unit, tokens) in enumerate(zip((book.Unit.FREE_INPUT, book.Unit.FREE_OUTPUT), used, strict=True)):
            taken = min(tokens, max(0, free[which] + quota[which]))
            quota[which] -= taken
            quota[2 + which] -= taken
            lines += book.freed(payer_id=posting.payer_id, model=row["model"], unit=unit, used=tokens, taken=taken)
        return lines

    def _of_hold(self, posting: Posting) -> int:
        """What Redis had set aside. More than that, with a number, is no ending of ours: it is not softened, the table judges it."""
        if posting.charge_nanos > posting.reserved_nanos:
            return posting.charge_nanos
        return self._affordable(posting.payer_id, posting.charge_nanos, besides=self._funds[posting.payer_id].named_nanos)

    def _affordable(self, payer_id: str, charge: int, *, besides: int = 0) -> int:
        funds = self._funds[payer_id]
        left = funds.balance_nanos + self.plan.deltas.get(payer_id, (0, 0))[0] + funds.credit_nanos
        return min(charge, max(0, left + besides))

    def _deltas(self, payer_id: str) -> list[int]:
        return self.plan.deltas.setdefault(payer_id, [0, 0])

    def _quota(self, payer_id: str) -> list[int]:
        return self.plan.quotas.setdefault(payer_id, [0, 0, 0, 0])

    def _row(self, request: Record) -> None:
        if request["id"] not in self._rows:
            self._rows.add(request["id"])
            self.plan.requests.append(request)

    def _price(self, row: Record) -> None:
        """Price texts are kept only if they are what their id says; a row may name a price that another row brought.

        Whatever becomes of that other one: its worker has been told that its price is known, and sends it no more.
        """
        text = row["price"]
        if text and sha256(text.encode()).hexdigest() == row["price_id"]:
            self.plan.prices[row["price_id"]] = text

    def _note(self, screened: Screened) -> None:
        posting, row = screened.posting, screened.row
        if screened.row_fault:
            return
        self.plan.noted += 1
        key = refusal_key(screened)
        self._refused[key] += 1
        if key[0] and screened.row_id and self._refused[key] <= REFUSALS_PER_MINUTE:
            self._row({**_request(posting, row, cost=0, loss=0, overage=0), "id": screened.row_id, "ending": "none"})
            return
        self._crowd(posting, row, key)

    def _crowd(self, posting: Posting, row: Record, key: RefusalKey) -> None:
        """One more of a crowd: a row per key, reason and minute counts them; what differs between them is left out."""
        shared_id = id_at(key[2], f"refused/{key[0]}/{key[1]}")
        shared = self.plan.refusals.get(shared_id)
        if shared is not None:
            shared["times"] += 1
            return
        blank = {**row, "request_id": "", "created_ms": key[2], "duration_ms": 0, "ttft_ms": 0}
        self.plan.refusals[shared_id] = {
            **_request(posting, blank, cost=0, loss=0, overage=0),
            "id": shared_id,
            "ending": "none",
            "times": 1,
        }


def entry_rows(event_id: str, lines: book.Entries) -> list[Record]:
    """Lines as rows of ``entries``."""
    return [
        {
            "event_id": event_id,
            "line": line,
            "kind": entry.kind,
            "name": entry.name,
            "user_id": entry.payer_id,
            "unit": entry.unit,
            "amount": entry.amount,
        }
        for line, entry in enumerate(lines)
    ]


def conflict(posting: Posting, reason: ConflictReason, detail: str) -> Record:
    """The posting in full."""
    payload = {name: _plain(getattr(posting, name)) for name in _POSTING_FIELDS} | {"row": base64.b64encode(posting.row).decode()}
    return {
        "hold_id": _plain(posting.hold_id),
        "reason": reason,
        "kind": _plain(posting.kind),
        "charge_nanos": posting.charge_nanos if type(posting.charge_nanos) is int else 0,
        "shard": posting.shard,
        "stream_id": posting.stream_id,
        "detail": _plain(detail)[:DETAIL_MAX],
        "payload": payload,
        "digest": digest_of(posting),
    }


def digest_of(posting: Posting) -> str:
    """Leaves out where it stood in a stream: the same event is one conflict however often, and by whichever way, it comes."""
    said = [str(value) for value in (posting.kind, posting.hold_id, posting.payer_id, posting.charge_nanos, posting.reserved_nanos)]
    return sha256(json.dumps([*said, base64.b64encode(posting.row).decode()]).encode()).hexdigest()


_POSTING_FIELDS = tuple(name for name in Posting._fields if name != "row")


def _plain(value: object) -> str:
    # Anything at all as text that PostgreSQL takes: escapes for what is not printable ASCII.
    return str(value).encode("ascii", "backslashreplace").decode().replace("\x00", "\\x00")[:10_000]


def fault_of(posting: Posting) -> str:
    """Why this posting cannot be booked, or "". Its shard and stream id are the reader's own and trusted."""
    if posting.kind == NOTE:
        return "" if _is_time(posting.occurred_ms) else "no time"
    if posting.kind not in ENDINGS:
        return f"no such ending: {posting.kind}"
    if not (posting.hold_id and posting.payer_id and are_uuids_or_empty(posting.hold_id, posting.payer_id, posting.key_id)):
        return "hold, payer or key is not a UUID"
    amounts: tuple[int, ...] = (posting.charge_nanos, posting.reserved_nanos, posting.seq)
    if posting.free_input or posting.free_output:
        amounts += (posting.free_input, posting.free_output)
    if {*map(type, amounts)} != {int} or min(amounts) < 0 or max(amounts) > SEQ_MAX:
        return "an amount is not an integer from 0"
    if posting.kind == EventType.VOID and (posting.charge_nanos or len(amounts) > 3):
        return "a void that charges"
    return "" if _is_time(posting.occurred_ms) else "no time"


def _is_within(one: Used, other: Used) -> bool:
    """Nothing of it is more."""
    return one[0] <= other[0] and one[1] <= other[1] and one[2] <= other[2]


def _said(used: Used) -> str:
    return f"{used[0]} and {used[1]} + {used[2]} free tokens" if used[1] or used[2] else str(used[0])


def _unix_ms_of(hold_id: str) -> int:
    """When its request began: the first 48 bits of a UUIDv7."""
    return int(hold_id[:8] + hold_id[9:13], 16)


def _is_time(unix_ms: object) -> bool:
    return type(unix_ms) is int and 0 < unix_ms <= UNIX_MS_MAX


def _request(posting: Posting, row: Record, *, cost: int, loss: int, overage: int) -> Record:
    """The row of ``requests``. Ids and amounts are the event's, which Redis has acted upon; the rest is the row's."""
    hold = posting.reserved_nanos
    request = {
        **row,
        "id": posting.hold_id,
        "user_id": posting.payer_id or row["user_id"] or None,
        "creds_id": posting.key_id or row["creds_id"] or None,
        "ending": posting.kind,
        "hold_nanos": hold,
        "cost": cost,
        "refund_nanos": hold - min(cost + loss, hold),
        "overage_nanos": overage,
        "loss_nanos": loss,
        "occurred_ms": posting.occurred_ms,
        "created_ms": row["created_ms"] or posting.occurred_ms,
        "times": 1,
    }
    del request["price"]
    if posting.free_input or posting.free_output:
        request = NOTHING_RARE | request | {"free_input": posting.free_input, "free_output": posting.free_output}
    return request
