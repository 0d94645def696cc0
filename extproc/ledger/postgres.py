"""The ledger in PostgreSQL. What a batch means is decided in ``plan``; here it is locked, read, written and committed, once.

What a batch meets is locked and read in one round trip. The three large tables are written by COPY, everything else as one JSON array per
table, read by ``json_to_recordset``: a statement per table whatever the batch's size, and all of them in one round trip.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from extproc.errors import UsageError
from extproc.ledger import entries as book
from extproc.ledger.fence import Violation, advance
from extproc.ledger.lines import entry_lines, event_lines, request_lines
from extproc.ledger.plan import Ended, Funds, Plan, Planner, Record, RefusalKey, Screened, conflict, entry_rows, refusal_key, screen
from extproc.ledger.port import (
    NOTE,
    POSTINGS_MAX,
    Balance,
    ConflictReason,
    Cursor,
    EventType,
    Explanation,
    Grant,
    Granted,
    Posted,
    derived_id,
)
from extproc.ledger.rows import is_uuid
from extproc.money.posting import Posting
from extproc.stores.postgres import Database, Params, Row, Transaction
from extproc.stores.queries import Query, load_queries

PAGE_MAX = 1_000  # rows of one answer of the reading side
PIECE_ROWS = 100  # handled without a look at the sockets: a COPY of the other lane runs dry within a few hundred
MONTHS_AHEAD = 3  # partitions made in advance: a settler that is off for a quarter does not matter
Value = TypeVar("Value")
# What is encoded is made here and holds no circles; looking for them costs a tenth of a posting's time.
_JSON = json.JSONEncoder(check_circular=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Met:
    """What a batch finds in the ledger. ``rows``: ids that ``requests`` has already."""

    cursors: dict[int, Cursor]
    funds: dict[str, Funds]
    ended: dict[str, Ended]
    rows: set[str]


class PostgresLedger:
    """The ports Postings and Grants, and the reading side."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")
        # One batch is prepared at a time: else two are prepared together, then written together, and PostgreSQL and we wait in turns.
        # Whoever waits for it holds no lock of the database yet.
        self._turn = asyncio.Lock()

    # --- posting

    async def cursors(self, shards: Sequence[int]) -> dict[int, Cursor]:
        rows = await self._database.fetch(self._queries["read_cursors"], {"shards": list(shards)})
        found = _cursors(rows)
        return {shard: found.get(shard, Cursor(shard=shard)) for shard in shards}

    async def post(self, postings: Sequence[Posting]) -> Posted:
        """Book a batch in one transaction with the cursors of its shards. Repeating it changes nothing.

        ``StoreRejected``: something in it can never be booked; the caller finds out which, by halves, and quarantines it.
        """
        assert len(postings) <= POSTINGS_MAX
        async with self._database.transaction() as transaction:
            async with self._turn:
                screened, bad = await self._screen(postings)
                met = await self._meet(transaction, postings, screened)
                ahead, moved, violations = advance(postings, met.cursors)
                if len(ahead) < len(postings):
                    screened, bad = await self._screen(ahead)
                plan = await self._plan(transaction, screened, met)
            plan.conflicts.extend(bad)
            new_conflicts = await self._carry_out(transaction, plan, self._fence(moved, violations))
        return Posted(
            booked=plan.booked,
            noted=plan.noted,
            adjusted=plan.adjusted,
            repeated=plan.repeated + len(postings) - len(ahead),
            conflicts=new_conflicts,
            violations=len(violations),
            overage_nanos=plan.overage_nanos,
            loss_nanos=plan.loss_nanos,
            cursors=_positions(moved),
        )

    async def quarantine(self, posting: Posting, detail: str) -> Posted:
        async with self._database.transaction() as transaction:
            _, cursors = await transaction.run(self._lock_cursors([posting]))
            ahead, moved, violations = advance([posting], _cursors(cursors))
            if not ahead:
                return Posted(repeated=1, cursors=_positions(moved))
            rows = [conflict(posting, ConflictReason.REJECTED, detail)]
            await transaction.run(
                [self._write("insert_conflicts", rows), *self._fence(moved, violations)],
            )
            return Posted(conflicts=1, violations=len(violations), cursors=_positions(moved))

    async def _meet(self, transaction: Transaction, postings: Sequence[Posting], screened: Sequence[Screened]) -> _Met:
        """Cursors and balances are locked first, so that nothing read after them can change under the batch."""
        payers = sorted({one.posting.payer_id for one in screened if one.posting.kind != NOTE})
        holds = {one.posting.hold_id for one in screened if one.posting.kind != NOTE}
        rows = {one.row_id for one in screened} - {""}
        *_, cursors, funds, endings, found = await transaction.run(
            [
                *self._lock_cursors(postings),
                (self._queries["lock_balances"], {"payers": _array(payers)}),
                (self._queries["find_endings"], {"ids": _array(holds)}),
                (self._queries["find_rows"], {"ids": _array(rows)}),
            ]
        )
        return _Met(
            cursors=_cursors(cursors),
            funds={row["user_id"]: Funds(balance_nanos=row["balance"], credit_nanos=row["credit_nanos"]) for row in funds},
            ended=await self._ended(transaction, endings),
            rows={row["id"] for row in found},
        )

    async def _screen(self, postings: Sequence[Posting]) -> tuple[list[Screened], list[Record]]:
        good: list[Screened] = []
        bad: list[Record] = []
        for piece in _pieces(postings):
            await asyncio.sleep(0)
            ours, theirs = screen(piece)
            good += ours
            bad += theirs
        return good, bad

    async def _plan(self, transaction: Transaction, screened: Sequence[Screened], met: _Met) -> Plan:
        refused = await self._count_refusals(transaction, screened)
        planner = Planner(funds=met.funds, ended=met.ended, rows=met.rows, refused=refused)
        for piece in _pieces(screened):
            await asyncio.sleep(0)
            for one in piece:
                planner.take(one)
        return planner.plan

    def _lock_cursors(self, postings: Sequence[Posting]) -> list[tuple[Query, Params]]:
        shards = {"shards": sorted({posting.shard for posting in postings if posting.stream_id})}
        return [(self._queries["make_cursors"], shards), (self._queries["lock_cursors"], shards)]

    async def _ended(self, transaction: Transaction, endings: Sequence[Row]) -> dict[str, Ended]:
        if not endings:
            return {}
        followers = await transaction.fetch(self._queries["find_followers"], {"ids": [row["id"] for row in endings]})
        return {row["id"]: _ended(row, followers) for row in endings}

    async def _count_refusals(self, transaction: Transaction, screened: Sequence[Screened]) -> dict[RefusalKey, int]:
        counts = Counter(refusal_key(one) for one in screened if one.posting.kind == NOTE and not one.row_fault)
        if not counts:
            return {}
        rows = [{"key": key, "reason": reason, "minute": minute, "n": n} for (key, reason, minute), n in counts.items()]
        after = await transaction.fetch(self._queries["count_refusals"], {"rows": json.dumps(rows)})
        keys = {(row["key"], row["reason"], row["minute"]): row["seen"] for row in after}
        return {key: keys[key] - n for key, n in counts.items()}

    async def _carry_out(self, transaction: Transaction, plan: Plan, fence: list[tuple[Query, Params]]) -> int:
        """Write the plan; how many conflicts were new."""
        balances = [
            {"user_id": payer, "amount": amount, "credited": credited}
            for payer, (amount, credited) in plan.deltas.items()
            if amount or credited
        ]
        tables: tuple[tuple[str, list[dict[str, Any]]], ...] = (
            ("insert_conflicts", plan.conflicts),
            ("insert_prices", [{"price_id": price_id, "price": price} for price_id, price in plan.prices.items()]),
            ("replace_requests", plan.replaced),
            ("add_refusals", list(plan.refusals.values())),
            ("change_balances", balances),
            ("add_spend", [{"key": key, "quarter": quarter, "nanos": nanos} for (key, quarter), nanos in plan.spent.items()]),
        )
        await self._copy(transaction, plan.events, plan.entries, plan.requests)
        answers = await transaction.run([self._write(name, rows) for name, rows in tables if rows] + fence)
        return int(answers[0][0]["added"]) if plan.conflicts else 0

    async def _copy(self, transaction: Transaction, events: list[Record], entries: list[Record], requests: list[Record]) -> None:
        for name, rows, lines in (
            ("copy_events", events, event_lines),
            ("copy_entries", entries, entry_lines),
            ("copy_requests", requests, request_lines),
        ):
            if rows:
                await transaction.copy(self._queries[name], map(lines, _pieces(rows)))

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Query, Params]:
        return self._queries[name], {"rows": _JSON.encode(rows)}

    def _fence(self, moved: Mapping[int, Cursor], violations: Sequence[Violation]) -> list[tuple[Query, Params]]:
        statements = []
        if moved:
            rows = [{"shard": c.shard, "stream_id": c.stream_id, "epoch": c.epoch, "seq": c.seq} for c in moved.values()]
            statements.append(self._write("move_cursors", rows))
        if violations:
            told = [
                {"shard": v.shard, "kind": v.kind, "epoch": v.epoch, "expected_seq": v.expected_seq, "seq": v.seq, "stream_id": v.stream_id}
                for v in violations
            ]
            statements.append(self._write("insert_violations", told))
        return statements

    # --- grants

    async def grant(self, grant: Grant) -> Granted:
        """Book a deposit or a correction once. ``UsageError``: no such account, or its payment was booked as something else."""
        async with self._database.transaction() as transaction:
            balance = await self._locked(transaction, grant.payer_id)
            event_id = derived_id(grant.id, grant.event_type)
            before = await self._granted_before(transaction, grant, event_id)
            if before is not None:
                return Granted(event_id=before, fresh=False, balance=balance)
            lines = book.granted(payer_id=grant.payer_id, provider=grant.provider, amount_nanos=grant.amount_nanos)
            await self._copy(transaction, [_grant_event(grant, event_id, balance)], entry_rows(event_id, lines), [])
            await transaction.run(self._grant_statements(grant, event_id))
            return Granted(event_id=event_id, fresh=True, balance=await self._read(transaction, grant.payer_id))

    async def set_credit(self, payer_id: str, credit_nanos: int, *, actor: str, reason: str) -> Balance:
        """A new credit line; the same again changes nothing. A lowered one may leave the account below it: nothing is taken back."""
        async with self._database.transaction() as transaction:
            balance = await self._locked(transaction, payer_id)
            if balance.credit_nanos == credit_nanos:
                return balance
            audit_id = derived_id(payer_id, f"credit/{balance.version + 1}")
            detail = {"before_nanos": balance.credit_nanos, "after_nanos": credit_nanos}
            await transaction.run(
                [
                    (self._queries["set_credit_line"], {"payer": payer_id, "credit": credit_nanos}),
                    self._audit(audit_id, actor=actor, action="credit_line", subject=payer_id, reason=reason, detail=detail),
                ]
            )
            return await self._read(transaction, payer_id)

    async def balance(self, payer_id: str) -> Balance | None:
        rows = await self._database.fetch(self._queries["balance_of"], {"payer": payer_id})
        return Balance(**rows[0]) if rows else None

    async def undelivered(self, *, after: str | None, limit: int) -> list[Balance]:
        rows = await self._database.fetch(self._queries["undelivered_balances"], {"after": after, "limit": min(limit, PAGE_MAX)})
        return [Balance(**row) for row in rows]

    async def confirm(self, payer_id: str, version: int) -> None:
        await self._database.fetch(self._queries["confirm_balance"], {"payer": payer_id, "version": version})

    async def _locked(self, transaction: Transaction, payer_id: str) -> Balance:
        rows = await transaction.fetch(self._queries["lock_balance"], {"payer": payer_id})
        if not rows:
            raise UsageError(f"there is no account {payer_id}")
        return Balance(**rows[0])

    async def _read(self, transaction: Transaction, payer_id: str) -> Balance:
        return Balance(**(await transaction.fetch(self._queries["balance_of"], {"payer": payer_id}))[0])

    async def _granted_before(self, transaction: Transaction, grant: Grant, event_id: str) -> str | None:
        """The id of the event that this grant became already."""
        booked = await transaction.fetch(self._queries["find_event"], {"id": event_id})
        if not booked and grant.event_type is EventType.DEPOSIT and grant.reference is not None:
            named = {"method": grant.provider, "payment": grant.reference}
            paid = await transaction.fetch(self._queries["find_payment"], named)
            booked = [{**row, "id": derived_id(row["id"], EventType.DEPOSIT)} for row in paid]
        if not booked:
            return None
        if (booked[0]["user_id"], booked[0]["amount"]) != (grant.payer_id, grant.amount_nanos):
            raise UsageError(f"{grant.provider} {grant.reference or grant.id} was booked before, for another account or amount")
        if (booked[0]["provider"], booked[0]["reference"]) != (grant.provider, grant.reference):
            raise UsageError(f"{grant.id} was booked before, for another payment: {booked[0]['provider']} {booked[0]['reference']}")
        return str(booked[0]["id"])

    def _grant_statements(self, grant: Grant, event_id: str) -> list[tuple[Query, Params]]:
        change = {"user_id": grant.payer_id, "amount": grant.amount_nanos, "credited": grant.amount_nanos}
        statements = [
            self._write("change_balances", [change]),
            self._audit(
                derived_id(event_id, "audit"),
                actor=grant.actor,
                action=grant.event_type,
                subject=grant.payer_id,
                reason=grant.reason,
                detail={"event": event_id, "amount_nanos": grant.amount_nanos},
            ),
        ]
        if grant.event_type is EventType.DEPOSIT:
            topup = {
                "id": grant.id,
                "payer": grant.payer_id,
                "amount": grant.amount_nanos,
                "method": grant.provider,
                "payment": grant.reference,
                "occurred_ms": grant.occurred_ms,
            }
            statements.append((self._queries["insert_topup"], topup))
        return statements

    def _audit(
        self, audit_id: str, *, actor: str, action: str, subject: str, reason: str, detail: Mapping[str, Any]
    ) -> tuple[Query, Params]:
        params = {"id": audit_id, "actor": actor, "action": action, "subject": subject, "reason": reason, "detail": json.dumps(detail)}
        return self._queries["insert_audit"], params

    # --- reading

    async def requests(self, payer_id: str | None, *, limit: int, after: str | None = None) -> list[Row]:
        """Rows of ``requests`` plus ``cursor``. Without ``after``: the newest, newest first. With a row's cursor: what was posted later,
        oldest first, for a follower.
        """
        params: dict[str, object] = {"payer": payer_id, "limit": min(limit, PAGE_MAX)}
        if after is None:
            return _plain(await self._database.fetch(self._queries["newest_requests"], params))
        moment, _, last_id = after.partition(" ")
        if not is_uuid(last_id):
            raise UsageError(f"{after!r} is not the cursor of a request")
        rows = await self._database.fetch(self._queries["requests_posted_after"], {**params, "moment": moment, "id": last_id})
        return _plain(rows)

    async def explain(self, name: str) -> Explanation | None:
        """By hold id or by Envoy's request id. ``None``: the ledger has no such request (yet)."""
        async with self._database.transaction() as transaction:
            request = await self._find_request(transaction, name)
            if request is None:
                return None
            prices = await transaction.fetch(self._queries["price_text"], {"price_id": request["price_id"]})
            events = await transaction.fetch(self._queries["events_of_request"], {"id": request["id"]})
            ids = [event["id"] for event in events]
            lines = await transaction.fetch(self._queries["entries_of_events"], {"ids": ids}) if ids else []
        price = prices[0]["price"] if prices else None
        return Explanation(request=_plain([request])[0], price=price, events=tuple(_plain(events)), entries=tuple(_plain(lines)))

    async def _find_request(self, transaction: Transaction, name: str) -> Row | None:
        rows: list[Row] = []
        if is_uuid(name):
            rows = await transaction.fetch(self._queries["request_of_id"], {"id": name})
        if not rows:
            rows = await transaction.fetch(self._queries["request_of_envoy_id"], {"request_id": name.replace("\x00", "")})
        return rows[0] if rows else None

    async def drift(self, payer_id: str | None = None) -> list[Row]:
        """Invariant 2: accounts whose balance is not the sum of their entries; none, if all is well."""
        return await self._database.fetch(self._queries["drift"], {"payer": payer_id})

    async def housekeep(self) -> int:
        """Partitions for the months to come, old refusal windows away; how many partitions were made. Once a day is enough."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch(self._queries["make_partitions"], {"months": MONTHS_AHEAD})
            await transaction.fetch(self._queries["forget_refusal_windows"])
        return int(rows[0]["made"])


def _plain(rows: Sequence[Row]) -> list[Row]:
    """Ids and times as text (ISO 8601, UTC): values that JSON and a terminal take as they are."""
    return [{name: _plain_value(value) for name, value in row.items()} for row in rows]


def _plain_value(value: object) -> object:
    if isinstance(value, UUID):
        return str(value)
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value


def _pieces(rows: Sequence[Value]) -> Iterator[Sequence[Value]]:
    return (rows[start : start + PIECE_ROWS] for start in range(0, len(rows), PIECE_ROWS))


def _array(ids: Iterable[str]) -> str:
    """UUIDs as PostgreSQL writes an array of them; psycopg's own way takes as long as reading the events they are of."""
    return "{" + ",".join(ids) + "}"


def _grant_event(grant: Grant, event_id: str, balance: Balance) -> Record:
    return {
        "id": event_id,
        "user_id": grant.payer_id,
        "event_type": grant.event_type,
        "amount": grant.amount_nanos,
        "balance_after": balance.balance_nanos + grant.amount_nanos,
        "charge_nanos": 0,
        "of_id": None,
        "shard": None,
        "epoch": "",
        "seq": None,
        "metadata": {"provider": grant.provider, "reference": grant.reference, "actor": grant.actor, "reason": grant.reason},
        "occurred_ms": grant.occurred_ms,
    }


def _cursors(rows: Sequence[Row]) -> dict[int, Cursor]:
    return {row["shard"]: Cursor(**row) for row in rows}


def _positions(cursors: Mapping[int, Cursor]) -> dict[int, str]:
    return {shard: cursor.stream_id for shard, cursor in cursors.items()}


def _ended(row: Row, followers: Sequence[Row]) -> Ended:
    own = {follower["event_type"]: follower["charge_nanos"] for follower in followers if follower["of_id"] == row["id"]}
    adjust = own.get(EventType.ADJUST)
    return Ended(
        kind=row["event_type"],
        payer_id=row["user_id"],
        charge_nanos=row["charge_nanos"],
        adjusted_to=None if adjust is None else row["charge_nanos"] + adjust,
        has_overage=EventType.OVERAGE in own,
    )
