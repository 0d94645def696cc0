-- name: read_epochs
-- Which epoch each shard has, and whether somebody wants another one.
SELECT shard, number, epoch, state = 'open' AS is_open, wanted >= number AS is_wanted FROM shard_epochs;

-- name: take_epochs
-- The next number of these shards, above every one that their server knows.
INSERT INTO shard_epochs AS e (shard, number, epoch, state)
SELECT r.shard, r.above + 1, r.run_id || '.' || r.above + 1, 'rebuilding'
FROM json_to_recordset(%(rows)s::json) AS r (shard smallint, run_id text, above bigint) ORDER BY 1
ON CONFLICT (shard) DO UPDATE SET
    number = greatest(e.number + 1, excluded.number),
    epoch = split_part(excluded.epoch, '.', 1) || '.' || greatest(e.number + 1, excluded.number),
    state = 'rebuilding', changed_at = now()
RETURNING shard, epoch;

-- name: open_epochs
-- These shards serve, unless somebody has begun to build them anew.
UPDATE shard_epochs AS e SET state = 'open', changed_at = now()
FROM json_to_recordset(%(rows)s::json) AS r (shard smallint, epoch text)
WHERE e.shard = r.shard AND e.epoch = r.epoch AND e.state <> 'open';

-- name: want_epochs
-- Whoever leads these shards is to rebuild them.
UPDATE shard_epochs SET wanted = number WHERE shard = ANY(%(shards)s::smallint[]);

-- name: miss_payer
-- The same for the shard of a payer whom Redis has had and has not any more.
UPDATE shard_epochs SET wanted = number
WHERE state = 'open' AND shard = shard_of(%(payer)s::uuid)
    AND EXISTS (SELECT FROM balances WHERE user_id = %(payer)s::uuid AND redis_version IS NOT NULL);

-- name: see_worker
-- A gate worker lives.
INSERT INTO gate_workers (id, name) VALUES (%(id)s::uuid, %(name)s) ON CONFLICT (id) DO UPDATE SET seen_at = now();

-- name: dismiss_worker
-- It has nothing open any more.
DELETE FROM gate_workers WHERE id = %(id)s::uuid;

-- name: workers_of_host
-- Gate workers that run on a host, or did.
SELECT id::text AS id, name FROM gate_workers WHERE starts_with(name, %(host)s || ' ');

-- name: forget_workers
-- Those that never said goodbye.
DELETE FROM gate_workers WHERE seen_at < now() - interval '1 day';

-- name: live_workers
-- Gate workers that have shown themselves lately.
SELECT id::text AS id FROM gate_workers WHERE seen_at > now() - %(seconds)s * interval '1 second';

-- name: endings_of_holds
-- Which of these holds have ended, and how.
SELECT e.id::text AS hold_id, e.event_type AS kind, e.user_id::text AS payer_id, coalesce(q.creds_id::text, '') AS key_id, e.charge_nanos,
    coalesce(q.hold_nanos, 0) AS reserved_nanos, (extract(epoch FROM e.occurred_at) * 1000)::bigint AS occurred_ms,
    coalesce(e.free_input, 0) AS free_input, coalesce(e.free_output, 0) AS free_output
FROM billing_events AS e LEFT JOIN requests AS q ON q.id = e.id
WHERE e.id = ANY(%(ids)s::uuid[]);

-- name: hold_still
-- Everything that this transaction reads is of one moment.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: posted_payers
-- The payers of a shard, page by page.
SELECT b.user_id::text AS payer_id, b.balance AS balance_nanos, b.version, b.credited_total, b.credit_nanos, u.frozen, u.frozen_version,
    b.free_quota_input AS free_input, b.free_quota_output AS free_output, b.credited_input, b.credited_output
FROM balances AS b JOIN users AS u ON u.id = b.user_id
WHERE shard_of(b.user_id) = %(shard)s AND b.user_id > %(after)s::uuid
ORDER BY b.user_id LIMIT %(limit)s;

-- name: budgets_spent
-- What these budgets have spent, by span: everything, or the periods that now and a day ago lie in, be it nothing.
SELECT r.budget_id::text AS budget_id, p.span,
    coalesce((SELECT sum(s.nanos) FROM budget_spend AS s WHERE s.budget_id = r.budget_id AND s.day >= p.first AND s.day < p.beyond), 0)::bigint AS nanos
FROM json_to_recordset(%(rows)s::json) AS r (budget_id uuid, period text)
CROSS JOIN LATERAL (
    SELECT 'all' AS span, date '-infinity' AS first, date 'infinity' AS beyond WHERE r.period = 'none'
    UNION
    SELECT to_char(d.moment, CASE r.period WHEN 'day' THEN 'YYYY-MM-DD' ELSE 'YYYY-MM' END), date_trunc(r.period, d.moment)::date,
        (date_trunc(r.period, d.moment) + ('1 ' || r.period)::interval)::date
    FROM (VALUES (now() AT TIME ZONE 'UTC'), (now() AT TIME ZONE 'UTC' - interval '1 day')) AS d (moment) WHERE r.period <> 'none'
) AS p;
