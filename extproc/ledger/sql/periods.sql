-- name: share_periods
-- Held by everybody who books, until his transaction is over: meanwhile no month is closed. Waits for a close, which takes a moment.
SELECT pg_advisory_xact_lock_shared(%(class)s::integer, 0);

-- name: lock_periods
-- Held by who closes a month: whoever is booking has finished, and whoever begins sees that it is closed.
SELECT pg_advisory_xact_lock(%(class)s::integer, 0);

-- name: open_month
-- The month after the last closed one; NULL: none is closed.
SELECT (max(month) + interval '1 month')::date AS month FROM periods;

-- name: next_month
-- The month that is to be closed next, and whether it is over.
SELECT month, now() >= (month + interval '1 month') AT TIME ZONE 'UTC' AS is_over FROM (
    SELECT coalesce(
        (SELECT (max(month) + interval '1 month')::date FROM periods),
        (SELECT date_trunc('month', created_at AT TIME ZONE 'UTC')::date FROM users ORDER BY id LIMIT 1)) AS month
) AS m;

-- name: close_month
-- From now on nothing is booked into it.
INSERT INTO periods (month, actor, reason) VALUES (%(month)s::date, %(actor)s, %(reason)s);

-- name: sum_events
-- How many events a span of a month has booked, and how many of them came late from earlier ones.
SELECT count(*) AS events, count(late_period) AS late FROM billing_events
WHERE (late_period IS NULL AND occurred_at >= %(begin)s AND occurred_at < %(end)s) OR late_period = %(late)s::date;

-- name: sum_entries
-- What they did to each account. Most events have an id of their day (a hold is at most hours old), and their lines lie together; whatever
-- else is booked on it, such as what refers to an older request, is looked up one by one (OFFSET 0 keeps it so).
SELECT kind, name, unit, sum(amount)::numeric AS sum FROM (
    SELECT e.kind, e.name, e.unit, e.amount FROM billing_events AS v JOIN entries AS e ON e.event_id = v.id
    WHERE v.late_period IS NULL AND v.occurred_at >= %(begin)s AND v.occurred_at < %(end)s
        AND v.id >= uuid7_floor(%(ids_begin)s) AND v.id < uuid7_floor(%(end)s)
        AND e.event_id >= uuid7_floor(%(ids_begin)s) AND e.event_id < uuid7_floor(%(end)s)
    UNION ALL
    SELECT e.* FROM billing_events AS v
    CROSS JOIN LATERAL (SELECT kind, name, unit, amount FROM entries WHERE event_id = v.id OFFSET 0) AS e
    WHERE (v.late_period IS NULL AND v.occurred_at >= %(begin)s AND v.occurred_at < %(end)s
        AND (v.id < uuid7_floor(%(ids_begin)s) OR v.id >= uuid7_floor(%(end)s))) OR v.late_period = %(late)s::date
) AS lines GROUP BY 1, 2, 3;

-- name: insert_sums
-- Frozen.
INSERT INTO period_sums (month, kind, name, unit, sum)
SELECT %(month)s::date, r.kind, r.name, r.unit, r.sum
FROM json_to_recordset(%(rows)s::json) AS r (kind text, name text, unit text, sum numeric);

-- name: mark_summed
-- The close is complete.
UPDATE periods SET events = %(events)s, late = %(late)s, summed_at = now() WHERE month = %(month)s::date AND summed_at IS NULL RETURNING month;

-- name: list_periods
-- Closed months, newest first.
SELECT * FROM periods ORDER BY month DESC LIMIT %(limit)s;

-- name: period_of_month
-- One closed month.
SELECT * FROM periods WHERE month = %(month)s::date;

-- name: sums_of_month
-- What it did to each account.
SELECT kind, name, unit, sum FROM period_sums WHERE month = %(month)s::date ORDER BY kind, name, unit;
