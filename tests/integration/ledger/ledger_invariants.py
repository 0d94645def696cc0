"""Invariants of the ledger: every function answers the faults that it found, none if all is well.

Usable by any test that has a DSN; ``payer`` restricts a check to one account, for suites that share a database.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg.rows import dict_row

from extproc.ledger.fact_reader import PostgresFacts
from extproc.ledger.facts import FIRST_ID
from extproc.settlement.invariants import Finding, balance_is_its_entries, of_event
from extproc.stores.postgres import Database

UNBALANCED = """
SELECT 'event ' || event_id || ' has entries of ' || sum(amount) || ' ' || unit AS fault FROM entries
WHERE event_id IN (SELECT id FROM billing_events WHERE %(payer)s::uuid IS NULL OR user_id = %(payer)s::uuid)
GROUP BY event_id, unit HAVING sum(amount) <> 0
"""
DRIFT = """
SELECT 'account ' || b.user_id || ': balance ' || b.balance || ', entries ' || coalesce(e.total, 0) || ', events ' || coalesce(v.total, 0) AS fault
FROM balances AS b
LEFT JOIN (SELECT user_id, sum(amount) AS total FROM entries WHERE user_id IS NOT NULL AND unit = 'nanos' GROUP BY 1) AS e ON e.user_id = b.user_id
LEFT JOIN (SELECT user_id, sum(amount) AS total FROM billing_events GROUP BY 1) AS v ON v.user_id = b.user_id
WHERE (b.balance <> coalesce(e.total, 0) OR b.balance <> coalesce(v.total, 0)) AND (%(payer)s::uuid IS NULL OR b.user_id = %(payer)s::uuid)
"""
ROWS = """
SELECT 'hold ' || coalesce(v.id, q.id) || ': ending ' || coalesce(v.event_type, 'none') || ', row ' || coalesce(q.ending, 'none') AS fault
FROM (SELECT * FROM billing_events WHERE event_type IN ('settle', 'void', 'expire')) AS v
FULL JOIN (SELECT * FROM requests WHERE ending <> 'none') AS q ON q.id = v.id
WHERE v.event_type IS DISTINCT FROM q.ending AND (%(payer)s::uuid IS NULL OR coalesce(v.user_id, q.user_id) = %(payer)s::uuid)
"""


def _select(dsn: str, sql: str, payer: str | None) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute(sql.encode(), {"payer": payer}).fetchall()


def ledger_faults(dsn: str, payer: str | None = None) -> list[str]:
    """What the product's own checks find in every event and account; and, past them, three looks of SQL alone."""
    with ThreadPoolExecutor(1) as thread:  # whoever asks may have a loop of his own
        found = thread.submit(asyncio.run, _findings(dsn, payer)).result()
    return [str(finding) for finding in found] + [row["fault"] for sql in (UNBALANCED, DRIFT, ROWS) for row in _select(dsn, sql, payer)]


async def _findings(dsn: str, payer: str | None) -> list[Finding]:
    async with Database(dsn) as database:
        facts, found = PostgresFacts(database), list[Finding]()
        after = FIRST_ID
        while events := await facts.events_by_id(after, limit=1_000):
            after = events[-1].id
            found += [finding for one in events if payer in (None, one.account) for finding in of_event(one)]
        payers = await facts.accounts(FIRST_ID, limit=1_000) if payer is None else [payer]
        return found + [finding for one in await facts.sums(payers, lines_max=None) for finding in balance_is_its_entries(one)]
