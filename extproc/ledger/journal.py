"""How events get into the tables, whoever decided them: by COPY, and into the month that is open.

**The rule of periods, here and nowhere else**: an event belongs to the month (UTC) in which it occurred, unless that month was closed when
the event came; then it belongs to the month that is open, and says so (``late_period``). Everybody who books holds a lock, shared, until
his transaction is over; who closes a month takes the lock for himself. So nothing slips into a month that is being closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, TypeVar

from extproc.ledger.lines import entry_lines, event_lines, rare_request_lines, request_lines
from extproc.ledger.plan import Record
from extproc.ledger.port import midnight
from extproc.ledger.rows import RARE
from extproc.stores.postgres import Params, Row, Transaction
from extproc.stores.queries import Queries, Query

PERIODS_LOCK = 0x65787071  # "expq": a class of advisory locks of our own
PIECE_ROWS = 100  # handled without a look at the sockets: a COPY of another lane runs dry within a few hundred
# What is encoded is made here and holds no circles; looking for them costs a tenth of a posting's time.
_JSON = json.JSONEncoder(check_circular=False, separators=(",", ":"))

Statement = tuple[Query, Params]
Value = TypeVar("Value")


class Journal:
    """What everybody needs who writes events and entries."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    def begin(self) -> list[Statement]:
        """The first statements of a transaction that books: no month is closed until it is over. The last one answers the open month."""
        return [(self._queries["share_periods"], {"class": PERIODS_LOCK}), (self._queries["open_month"], {})]

    async def copy(
        self,
        transaction: Transaction,
        *,
        open_month: Sequence[Row],
        events: Sequence[Record],
        entries: Sequence[Record],
        requests: Sequence[Record] = (),
    ) -> None:
        """Rows for the three large tables. ``open_month`` is the answer to the last statement of :meth:`begin`."""
        _mark_late(events, open_month[0]["month"])
        rare = [row for row in requests if RARE[0] in row]
        if rare:
            requests = [row for row in requests if RARE[0] not in row]
        for name, rows, lines in (
            ("copy_events", events, event_lines),
            ("copy_entries", entries, entry_lines),
            ("copy_requests", requests, request_lines),
            ("copy_rare_requests", rare, rare_request_lines),
        ):
            if rows:
                await transaction.copy(self._queries[name], map(lines, pieces(rows)))

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Statement:
        """A statement that reads its rows from one JSON array."""
        return self._queries[name], {"rows": _JSON.encode(rows)}


def pieces(rows: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """So many that the loop is not kept from its sockets."""
    return (rows[start : start + PIECE_ROWS] for start in range(0, len(rows), PIECE_ROWS))


def _mark_late(events: Sequence[Record], open_month: date | None) -> None:
    if open_month is None:
        return
    first_ms = int(midnight(open_month).timestamp()) * 1_000
    for event in events:
        if event["occurred_ms"] < first_ms:
            event["late_period"] = open_month
