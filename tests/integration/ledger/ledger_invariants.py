"""Invariants of the ledger as check queries (MONEY.md's numbers): every function answers the faults that it found, none if all is well.

Usable by any test that has a DSN; ``payer`` restricts a check to one account, for suites that share a database.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from extproc.money.price import Price
from extproc.money.receipt import cost_nanos
from extproc.money.usage import Usage

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
AMOUNTS = """
SELECT 'event ' || v.id || ' changes the balance by ' || v.amount || ', its entries by ' || coalesce(e.total, 0) AS fault
FROM billing_events AS v
LEFT JOIN (SELECT event_id, sum(amount) AS total FROM entries WHERE user_id IS NOT NULL AND unit = 'nanos' GROUP BY 1) AS e ON e.event_id = v.id
WHERE v.amount <> coalesce(e.total, 0) AND (%(payer)s::uuid IS NULL OR v.user_id = %(payer)s::uuid)
"""
ROWS = """
SELECT 'hold ' || coalesce(v.id, q.id) || ': ending ' || coalesce(v.event_type, 'none') || ', row ' || coalesce(q.ending, 'none') AS fault
FROM (SELECT * FROM billing_events WHERE event_type IN ('settle', 'void', 'expire')) AS v
FULL JOIN (SELECT * FROM requests WHERE ending <> 'none') AS q ON q.id = v.id
WHERE v.event_type IS DISTINCT FROM q.ending AND (%(payer)s::uuid IS NULL OR coalesce(v.user_id, q.user_id) = %(payer)s::uuid)
"""
FOLLOWERS = """
SELECT 'hold ' || of_id || ' has ' || count(*) || ' × ' || event_type AS fault FROM billing_events
WHERE of_id IS NOT NULL AND event_type <> 'usage_refund' AND (%(payer)s::uuid IS NULL OR user_id = %(payer)s::uuid) GROUP BY of_id, event_type HAVING count(*) > 1
UNION ALL
SELECT 'adjust ' || a.id || ' follows a ' || v.event_type FROM billing_events AS a JOIN billing_events AS v ON v.id = a.of_id
WHERE a.event_type = 'adjust' AND v.event_type <> 'expire' AND (%(payer)s::uuid IS NULL OR a.user_id = %(payer)s::uuid)
"""
CHARGED = """
SELECT 'request ' || q.id || ' says cost ' || q.cost || ', its events say ' || v.total AS fault FROM requests AS q
JOIN (SELECT coalesce(of_id, id) AS id, -sum(amount) AS total FROM billing_events
      WHERE event_type IN ('settle', 'void', 'expire', 'adjust') GROUP BY 1) AS v ON v.id = q.id
WHERE q.cost <> v.total AND (%(payer)s::uuid IS NULL OR q.user_id = %(payer)s::uuid)
"""
REFUNDED = """
SELECT 'request ' || q.id || ' of cost ' || q.cost || ' says ' || q.refunded_nanos || ' refunded, its events say ' || coalesce(v.total, 0) AS fault
FROM requests AS q
LEFT JOIN (SELECT of_id, sum(amount) AS total FROM billing_events WHERE event_type = 'usage_refund' GROUP BY 1) AS v ON v.of_id = q.id
WHERE (q.refunded_nanos <> coalesce(v.total, 0) OR q.refunded_nanos NOT BETWEEN 0 AND q.cost)
    AND (%(payer)s::uuid IS NULL OR q.user_id = %(payer)s::uuid)
"""
PRICED = """
SELECT q.*, p.price FROM requests AS q LEFT JOIN price_versions AS p USING (price_id)
WHERE q.ending IN ('settle', 'expire') AND (q.cost > 0 OR q.list_nanos > 0) AND (%(payer)s::uuid IS NULL OR q.user_id = %(payer)s::uuid)
"""


def _select(dsn: str, sql: str, payer: str | None) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute(sql.encode(), {"payer": payer}).fetchall()


def entries_sum_to_zero(dsn: str, payer: str | None = None) -> list[str]:
    """1."""
    return [row["fault"] for row in _select(dsn, UNBALANCED, payer)]


def balances_are_their_entries(dsn: str, payer: str | None = None) -> list[str]:
    """2, and that events say what their entries say."""
    return [row["fault"] for sql in (DRIFT, AMOUNTS) for row in _select(dsn, sql, payer)]


def one_ending_per_hold(dsn: str, payer: str | None = None) -> list[str]:
    """6 and 7: an ending has one row and a row one ending; at most one adjust, only after an expire."""
    return [row["fault"] for sql in (ROWS, FOLLOWERS) for row in _select(dsn, sql, payer)]


def charges_are_explained(dsn: str, payer: str | None = None) -> list[str]:
    """10: the charge follows from usage, price and cap, all of them in the row."""
    faults = [row["fault"] for sql in (CHARGED, REFUNDED) for row in _select(dsn, sql, payer)]
    for row in _select(dsn, PRICED, payer):
        faults += _explained(row)
    return faults


def _explained(row: dict[str, Any]) -> list[str]:
    if row["price"] is None:
        return [f"request {row['id']} names a price that is not kept: {row['price_id']!r}"]
    usage = Usage(
        input_tokens=row["input_tokens"],
        cached_tokens=row["cached_tokens"],
        output_tokens=row["output_tokens"],
        reasoning_tokens=row["reasoning_tokens"],
    )
    worth = cost_nanos(usage, Price.parse(row["price"]))
    faults = []
    if row["list_nanos"] != worth:
        faults.append(f"request {row['id']} says that its usage costs {row['list_nanos']}; it costs {worth}")
    borne = row["cost"] + row["overage_nanos"] + row["loss_nanos"]
    if borne != (0 if row["sandbox"] or row["shadow"] else worth):
        faults.append(f"request {row['id']}: cost, overage and loss are {borne}, the usage costs {worth}")
    return faults


def ledger_faults(dsn: str, payer: str | None = None) -> list[str]:
    """All of them."""
    checks = (entries_sum_to_zero, balances_are_their_entries, one_ending_per_hold, charges_are_explained)
    return [fault for check in checks for fault in check(dsn, payer)]
