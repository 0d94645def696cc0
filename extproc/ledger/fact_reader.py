"""Facts of the ledger for the reconciler, and what it remembers of its findings. Nothing of the ledger itself is ever written here."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from extproc.ledger.facts import FIRST_ID, AccountMoney, AccountSum, BookedEvent, Mark, Orphan, Run, ShardMoney
from extproc.ledger.port import ENDINGS, Cursor
from extproc.stores.postgres import Database, Row, Transaction
from extproc.stores.queries import load_queries

PAGE_MAX = 2_000  # rows of one answer
LINES_A_STATEMENT = 50_000  # entries summed by one statement: a tenth of a second
KEYS_MAX = 2_000  # keys of the accounts of one look; the newest
CAUSES_LOOKED_AT = 1_000  # newest events in which the cause of a negative balance is looked for

Units = tuple[int, int, int]  # sums in nanos and in free tokens of input and output


class PostgresFacts:
    """The port LedgerFactsReader, and the findings."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")

    # --- facts

    async def events_by_id(self, after: str, *, limit: int) -> list[BookedEvent]:
        return await self._events("events_by_id", {"after": after, "limit": min(limit, PAGE_MAX)})

    async def events_by_time(self, mark: Mark, *, limit: int, payer: str | None = None) -> list[BookedEvent]:
        place = {"moment": mark.moment, "after": mark.after, "limit": min(limit, PAGE_MAX)}
        if payer is None:
            return await self._events("events_by_time", place)
        return await self._events("events_of_account_by_time", {**place, "payer": payer})

    async def _events(self, name: str, params: Mapping[str, object]) -> list[BookedEvent]:
        async with self._database.transaction() as transaction:
            _, events = await transaction.run([(self._queries["hold_still"], {}), (self._queries[name], params)])
            if not events:
                return []
            ids = [event["id"] for event in events]
            holds = [event["id"] for event in events if event["event_type"] in ENDINGS]
            of_ids = [event["of_id"] for event in events if event["of_id"]]
            lines, rows, around = await transaction.run(
                [
                    (self._queries["lines_of_events"], {"ids": ids}),
                    (self._queries["rows_of_holds"], {"ids": holds}),
                    (self._queries["events_around"], {"ids": ids, "of_ids": of_ids}),
                ]
            )
        return _booked(events, lines, rows, around)

    async def orphans(self, after: str, last: str) -> list[Orphan]:
        rows = await self._database.fetch(self._queries["orphans"], {"after": after, "last": last, "limit": PAGE_MAX})
        return [Orphan(what=row["what"], id=row["id"], account=row["user_id"], amount_nanos=int(row["amount"])) for row in rows]

    async def accounts(self, after: str, *, limit: int) -> list[str]:
        rows = await self._database.fetch(self._queries["accounts_by_id"], {"after": after, "limit": min(limit, PAGE_MAX)})
        return [row["payer_id"] for row in rows]

    async def sums(self, payers: Sequence[str], *, lines_max: int | None) -> list[AccountSum]:
        """A long account is summed up in pieces, in the same transaction: of one moment, and no statement runs into its time-out."""
        lines = LINES_A_STATEMENT if lines_max is None else lines_max
        async with self._database.transaction() as transaction:
            statement = (self._queries["sums_of_accounts"], {"payers": list(payers), "lines": lines})
            _, rows = await transaction.run([(self._queries["hold_still"], {}), statement])
            totals = {row["payer_id"]: _units(row) for row in rows if row["lines"] < lines}
            for payer in [row["payer_id"] for row in rows if row["lines"] >= lines and lines_max is None]:
                totals[payer] = await self._sum(transaction, payer)
        return [
            AccountSum(
                payer_id=row["payer_id"],
                balance_nanos=row["balance_nanos"],
                entries_nanos=totals[row["payer_id"]][0],
                free=(row["free_input"], row["free_output"]),
                entries_free=totals[row["payer_id"]][1:],
            )
            for row in rows
            if row["payer_id"] in totals
        ]

    async def _sum(self, transaction: Transaction, payer: str) -> Units:
        """The cut may fall between two lines of one event: one in money, and one in free tokens."""
        total: Units = (0, 0, 0)
        place = {"payer": payer, "after": FIRST_ID, "after_line": -1, "lines": LINES_A_STATEMENT}
        while True:
            (row,) = await transaction.fetch(self._queries["next_sum_of_account"], place)
            nanos, given, made = _units(row)
            total = (total[0] + nanos, total[1] + given, total[2] + made)
            if row["lines"] < LINES_A_STATEMENT:
                return total
            place |= {"after": row["last"], "after_line": row["last_line"]}

    async def shard_money(self, shard: int, payers: Sequence[str]) -> ShardMoney:
        async with self._database.transaction() as transaction:
            _, cursors, accounts, keys = await transaction.run(
                [
                    (self._queries["hold_still"], {}),
                    (self._queries["read_cursors"], {"shards": [shard]}),
                    (self._queries["money_of_accounts"], {"payers": list(payers)}),
                    (self._queries["keys_of_accounts"], {"payers": list(payers), "limit": KEYS_MAX}),
                ]
            )
        return ShardMoney(
            cursor=Cursor(**cursors[0]) if cursors else Cursor(shard=shard),
            accounts={row["payer_id"]: AccountMoney(**row) for row in accounts},
            keys=[f"{row['payer_id']}:{row['id']}" for row in keys],
        )

    async def named_causes(self, payers: Sequence[str]) -> frozenset[str]:
        rows = await self._database.fetch(self._queries["named_causes"], {"payers": list(payers), "limit": CAUSES_LOOKED_AT})
        return frozenset(row["payer_id"] for row in rows)

    async def violations(self, since: str) -> list[Row]:
        return await self._database.fetch(self._queries["violations_since"], {"moment": since, "limit": PAGE_MAX})

    async def conflicts(self) -> list[Row]:
        return await self._database.fetch(self._queries["open_conflicts"], {"limit": PAGE_MAX})

    async def billed_until(self) -> str:
        """A moment until which :meth:`billed_between` knows everything."""
        return str((await self._database.fetch(self._queries["billed_until"]))[0]["moment"])

    async def billed_between(self, since: str, until: str) -> list[Row]:
        """``model``, ``tokens``, ``requests`` of the rows booked between two moments."""
        return await self._database.fetch(self._queries["billed_between"], {"since": since, "until": until})

    # --- findings

    async def record(self, findings: Sequence[Mapping[str, Any]], *, whole: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keep findings; ``whole``: invariant, what and subject of those that a later look did not find any more."""
        async with self._database.transaction() as transaction:
            for name, rows in (("resolve_findings", whole), ("add_findings", findings)):
                if rows:
                    await transaction.fetch(self._queries[name], {"rows": json.dumps(rows)})

    async def standing(self) -> dict[int, tuple[int, int]]:
        """Invariant → findings that stand, their drift in nanos."""
        rows = await self._database.fetch(self._queries["open_findings"])
        return {row["invariant"]: (row["count"], int(row["drift_nanos"])) for row in rows}

    async def last_run(self) -> Run | None:
        """The newest full run, finished or not."""
        rows = await self._database.fetch(self._queries["last_run"])
        return Run(**rows[0]) if rows else None

    async def last_finished_ms(self) -> int | None:
        """When a full run was finished last."""
        finished: int | None = (await self._database.fetch(self._queries["last_finished_run"]))[0]["finished_ms"]
        return finished

    async def begin_run(self) -> Run:
        """A new full run."""
        return Run(**(await self._database.fetch(self._queries["begin_run"]))[0])

    async def advance_run(self, run_id: int, *, phase: str, after: str, looked_at: int, findings: int) -> None:
        """A step of it is done."""
        place = {"id": run_id, "phase": phase, "after": after, "looked_at": looked_at, "findings": findings}
        await self._database.fetch(self._queries["advance_run"], place)

    async def finish_run(self, run: Run) -> None:
        """Done: whatever it did not find again is resolved."""
        async with self._database.transaction() as transaction:
            await transaction.fetch(self._queries["resolve_unseen"], {"moment": run.started_at})
            await transaction.fetch(self._queries["finish_run"], {"id": run.id})


def _units(row: Row) -> Units:
    return int(row["nanos"]), int(row["entries_input"]), int(row["entries_output"])


def _booked(events: Sequence[Row], lines: Iterable[Row], rows: Iterable[Row], around: Iterable[Row]) -> list[BookedEvent]:
    entries, followers = defaultdict(list), defaultdict(list)
    for line in lines:
        entries[line["event_id"]].append(line)
    by_id = {}
    for one in around:
        by_id[one["id"]] = one
        if one["of_id"]:
            followers[one["of_id"]].append(one)
    requests = {row["id"]: row for row in rows}
    return [
        BookedEvent(
            event=event,
            entries=entries[event["id"]],
            request=requests.get(event["id"]) if event["event_type"] in ENDINGS else None,
            followers=followers[event["id"]],
            base=by_id.get(event["of_id"]),
        )
        for event in events
    ]
