"""The ledger in PostgreSQL. What a batch means is decided in ``plan``; here it is locked, read, written and committed, once.

What a batch meets is locked and read in one round trip. The three large tables are written by COPY, everything else as one JSON array per
table, read by ``json_to_recordset``: a statement per table whatever the batch's size, and all of them in one round trip.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from extproc.errors import UsageError
from extproc.ledger.fence import Violation, advance
from extproc.ledger.grants import PAGE_MAX, PostgresGrants
from extproc.ledger.journal import pieces
from extproc.ledger.plan import Ended, Funds, Plan, Planner, Record, RefusalKey, Screened, conflict, refusal_key, screen, short_of_money
from extproc.ledger.port import (
    NOTE,
    POSTINGS_MAX,
    ConflictReason,
    Cursor,
    EventType,
    Explanation,
    Posted,
)
from extproc.ledger.rows import is_uuid
from extproc.money.posting import Posting
from extproc.stores.postgres import Database, Params, Row, Transaction, array_of
from extproc.stores.queries import Query

QUOTA_COLUMNS = ("user_id", "input", "output", "credited_input", "credited_output")
MONTHS_AHEAD = 3  # partitions made in advance: a settler that is off for a quarter does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Met:
    """What a batch finds in the ledger. ``rows``: ids that ``requests`` has already."""

    cursors: dict[int, Cursor]
    funds: dict[str, Funds]
    ended: dict[str, Ended]
    rows: set[str]
    open_month: list[Row]


class PostgresLedger(PostgresGrants):
    """The ports Postings and (inherited) Grants, and the reading side."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
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
            await self._journal.copy(
                transaction, open_month=met.open_month, events=plan.events, entries=plan.entries, requests=plan.requests
            )
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
                [self._journal.write("insert_conflicts", rows), *self._fence(moved, violations)],
            )
            return Posted(conflicts=1, violations=len(violations), cursors=_positions(moved))

    async def _meet(self, transaction: Transaction, postings: Sequence[Posting], screened: Sequence[Screened]) -> _Met:
        """Cursors and balances are locked first, so that nothing read after them can change under the batch."""
        payers = sorted({one.posting.payer_id for one in screened if one.posting.kind != NOTE})
        holds = {one.posting.hold_id for one in screened if one.posting.kind != NOTE}
        rows = {one.row_id for one in screened} - {""}
        _, open_month, _, cursors, funds, endings, found = await transaction.run(
            [
                *self._journal.begin(),
                *self._lock_cursors(postings),
                (self._queries["lock_balances"], {"payers": array_of(payers)}),
                (self._queries["find_endings"], {"ids": array_of(holds)}),
                (self._queries["find_rows"], {"ids": array_of(rows)}),
            ]
        )
        return _Met(
            cursors=_cursors(cursors),
            funds=await self._funds(transaction, screened, funds),
            ended=await self._ended(transaction, endings),
            rows={row["id"] for row in found},
            open_month=open_month,
        )

    async def _screen(self, postings: Sequence[Posting]) -> tuple[list[Screened], list[Record]]:
        good: list[Screened] = []
        bad: list[Record] = []
        for piece in pieces(postings):
            await asyncio.sleep(0)
            ours, theirs = screen(piece)
            good += ours
            bad += theirs
        return good, bad

    async def _plan(self, transaction: Transaction, screened: Sequence[Screened], met: _Met) -> Plan:
        refused = await self._count_refusals(transaction, screened)
        planner = Planner(funds=met.funds, ended=met.ended, rows=met.rows, refused=refused)
        for piece in pieces(screened):
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

    async def _funds(self, transaction: Transaction, screened: Sequence[Screened], locked: Sequence[Row]) -> dict[str, Funds]:
        funds = {
            row["user_id"]: Funds(
                balance_nanos=row["balance"], credit_nanos=row["credit_nanos"], free=(row["free_quota_input"], row["free_quota_output"])
            )
            for row in locked
        }
        short = short_of_money(screened, funds)
        if short:
            for row in await transaction.fetch(self._queries["named_causes_of"], {"payers": array_of(short)}):
                funds[row["user_id"]] = replace(funds[row["user_id"]], named_nanos=row["nanos"])
        return funds

    async def _count_refusals(self, transaction: Transaction, screened: Sequence[Screened]) -> dict[RefusalKey, int]:
        counts = Counter(refusal_key(one) for one in screened if one.posting.kind == NOTE and not one.row_fault)
        if not counts:
            return {}
        rows = [{"key": key, "reason": reason, "minute": minute, "n": n} for (key, reason, minute), n in counts.items()]
        after = await transaction.fetch(self._queries["count_refusals"], {"rows": json.dumps(rows)})
        keys = {(row["key"], row["reason"], row["minute"]): row["seen"] for row in after}
        return {key: keys[key] - n for key, n in counts.items()}

    async def _carry_out(self, transaction: Transaction, plan: Plan, fence: list[tuple[Query, Params]]) -> int:
        """Write the rest of the plan; how many conflicts were new."""
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
            ("change_quotas", [dict(zip(QUOTA_COLUMNS, (payer, *changes), strict=True)) for payer, changes in plan.quotas.items()]),
            ("add_spend", [{"key": key, "quarter": quarter, "nanos": nanos} for (key, quarter), nanos in plan.spent.items()]),
        )
        answers = await transaction.run([self._journal.write(name, rows) for name, rows in tables if rows] + fence)
        return int(answers[0][0]["added"]) if plan.conflicts else 0

    def _fence(self, moved: Mapping[int, Cursor], violations: Sequence[Violation]) -> list[tuple[Query, Params]]:
        statements = []
        if moved:
            rows = [{"shard": c.shard, "stream_id": c.stream_id, "epoch": c.epoch, "seq": c.seq} for c in moved.values()]
            statements.append(self._journal.write("move_cursors", rows))
        if violations:
            told = [
                {"shard": v.shard, "kind": v.kind, "epoch": v.epoch, "expected_seq": v.expected_seq, "seq": v.seq, "stream_id": v.stream_id}
                for v in violations
            ]
            statements.append(self._journal.write("insert_violations", told))
        return statements

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


def _cursors(rows: Sequence[Row]) -> dict[int, Cursor]:
    return {row["shard"]: Cursor(**row) for row in rows}


def _positions(cursors: Mapping[int, Cursor]) -> dict[int, str]:
    return {shard: cursor.stream_id for shard, cursor in cursors.items()}


def _ended(row: Row, followers: Sequence[Row]) -> Ended:
    own = {follower["event_type"]: follower for follower in followers if follower["of_id"] == row["id"]}
    adjust = own.get(EventType.ADJUST, {"charge_nanos": None, "free_input": 0, "free_output": 0})
    return Ended(
        kind=row["event_type"],
        payer_id=row["user_id"],
        charge_nanos=row["charge_nanos"],
        adjusted_to=None if adjust["charge_nanos"] is None else row["charge_nanos"] + adjust["charge_nanos"],
        has_overage=EventType.OVERAGE in own,
        loss_nanos=row["loss_nanos"],
        free_input=row["free_input"] + adjust["free_input"],
        free_output=row["free_output"] + adjust["free_output"],
    )
