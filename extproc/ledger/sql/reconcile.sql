-- name: events_by_id
-- Events in the order of their ids, page by page.
SELECT id::text AS id, user_id::text AS user_id, event_type, amount, charge_nanos, free_input, free_output, of_id::text AS of_id, shard, epoch, seq,
    created_at::text AS created_at
FROM billing_events WHERE id > %(after)s::uuid ORDER BY id LIMIT %(limit)s;

-- name: events_by_time
-- Events in the order in which they were booked, page by page.
SELECT id::text AS id, user_id::text AS user_id, event_type, amount, charge_nanos, free_input, free_output, of_id::text AS of_id, shard, epoch, seq,
    created_at::text AS created_at
FROM billing_events WHERE created_at >= %(moment)s::timestamptz AND (created_at, id) > (%(moment)s::timestamptz, %(after)s::uuid)
ORDER BY created_at, id LIMIT %(limit)s;

-- name: events_of_account_by_time
-- The same of one account.
SELECT id::text AS id, user_id::text AS user_id, event_type, amount, charge_nanos, free_input, free_output, of_id::text AS of_id, shard, epoch, seq,
    created_at::text AS created_at
FROM billing_events
WHERE user_id = %(payer)s::uuid AND created_at >= %(moment)s::timestamptz AND (created_at, id) > (%(moment)s::timestamptz, %(after)s::uuid)
ORDER BY created_at, id LIMIT %(limit)s;

-- name: lines_of_events
-- The entries of these events.
SELECT event_id::text AS event_id, kind, name, user_id::text AS user_id, unit, amount FROM entries WHERE event_id = ANY(%(ids)s::uuid[]);

-- name: rows_of_holds
-- The requests of these holds with their prices in full.
SELECT q.id::text AS id, q.user_id::text AS user_id, q.input_tokens, q.cached_tokens, q.output_tokens, q.reasoning_tokens,
    q.cache_creation_tokens, q.image_tokens, q.audio_tokens, q.images, q.audio_ms, q.input_characters, q.output_characters, q.input_words,
    q.output_words, q.free_input, q.free_output, q.usage_source, q.usage_flags, q.ending, q.end_reason, q.hold_nanos, q.cost, q.refund_nanos, q.list_nanos, q.overage_nanos, q.loss_nanos, q.price_id,
    q.sandbox, q.shadow, q.policies, p.price
FROM requests AS q LEFT JOIN price_versions AS p USING (price_id) WHERE q.id = ANY(%(ids)s::uuid[]);

-- name: events_around
-- What these events complete or correct, and what completes or corrects them.
SELECT id::text AS id, user_id::text AS user_id, event_type, amount, charge_nanos, free_input, free_output, of_id::text AS of_id FROM billing_events
WHERE id = ANY(%(of_ids)s::uuid[])
UNION
SELECT id::text, user_id::text, event_type, amount, charge_nanos, free_input, free_output, of_id::text FROM billing_events WHERE of_id = ANY(%(ids)s::uuid[]);

-- name: orphans
-- Rows of ended requests, and entries, in a range of ids that no event belongs to.
SELECT 'row' AS what, q.id::text AS id, coalesce(q.user_id::text, '') AS user_id, -q.cost AS amount FROM requests AS q
WHERE q.id > %(after)s::uuid AND q.id <= %(last)s::uuid AND q.ending <> 'none'
    AND NOT EXISTS (SELECT FROM billing_events AS v WHERE v.id = q.id)
UNION ALL
SELECT 'entry', e.event_id::text, coalesce(e.user_id::text, ''), e.amount FROM entries AS e
WHERE e.event_id > %(after)s::uuid AND e.event_id <= %(last)s::uuid
    AND NOT EXISTS (SELECT FROM billing_events AS v WHERE v.id = e.event_id)
LIMIT %(limit)s;

-- name: accounts_by_id
-- Accounts in the order of their ids, page by page.
SELECT user_id::text AS payer_id FROM balances WHERE user_id > %(after)s::uuid ORDER BY user_id LIMIT %(limit)s;

-- name: sums_of_accounts
-- Balances and the sums of their entries, of no more than so many entries each.
SELECT b.user_id::text AS payer_id, b.balance AS balance_nanos, b.free_quota_input AS free_input, b.free_quota_output AS free_output,
    e.nanos, e.entries_input, e.entries_output, e.lines
FROM balances AS b CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount) FILTER (WHERE unit = 'nanos'), 0)::numeric AS nanos,
        coalesce(sum(amount) FILTER (WHERE unit = 'free_input'), 0)::numeric AS entries_input,
        coalesce(sum(amount) FILTER (WHERE unit = 'free_output'), 0)::numeric AS entries_output, count(*) AS lines
    FROM (SELECT unit, amount FROM entries WHERE user_id = b.user_id LIMIT %(lines)s) AS next_entries
) AS e
WHERE b.user_id = ANY(%(payers)s::uuid[]) ORDER BY b.user_id;

-- name: next_sum_of_account
-- The sums of an account's next entries after a line of an event, and up to which one.
SELECT coalesce(sum(amount) FILTER (WHERE unit = 'nanos'), 0)::numeric AS nanos,
    coalesce(sum(amount) FILTER (WHERE unit = 'free_input'), 0)::numeric AS entries_input,
    coalesce(sum(amount) FILTER (WHERE unit = 'free_output'), 0)::numeric AS entries_output,
    count(*) AS lines, (array_agg(event_id::text ORDER BY event_id DESC, line DESC))[1] AS last,
    (array_agg(line ORDER BY event_id DESC, line DESC))[1] AS last_line
FROM (
    SELECT unit, amount, event_id, line FROM entries
    WHERE user_id = %(payer)s::uuid AND event_id >= %(after)s::uuid AND (event_id, line) > (%(after)s::uuid, %(after_line)s)
    ORDER BY event_id, line LIMIT %(lines)s
) AS first_entries;

-- name: money_of_accounts
-- What Redis is to be compared with.
SELECT user_id::text AS payer_id, balance AS balance_nanos, credit_nanos, version, credited_total, redis_version,
    free_quota_input AS free_input, free_quota_output AS free_output, credited_input, credited_output FROM balances
WHERE user_id = ANY(%(payers)s::uuid[]);

-- name: keys_of_accounts
-- Keys of these accounts that Redis was told of.
SELECT user_id::text AS payer_id, id::text AS id FROM credentials
WHERE user_id = ANY(%(payers)s::uuid[]) AND redis_version IS NOT NULL ORDER BY id DESC LIMIT %(limit)s;

-- name: named_causes
-- Accounts that something other than a hold may have taken below their line: one of their newest events, or a lowered line.
SELECT u.id::text AS payer_id FROM unnest(%(payers)s::uuid[]) AS u (id)
WHERE EXISTS (
    SELECT FROM (
        SELECT event_type, amount, seq FROM billing_events WHERE user_id = u.id ORDER BY created_at DESC LIMIT %(limit)s
    ) AS v WHERE v.amount < 0 AND (v.event_type NOT IN ('settle', 'expire') OR v.seq IS NULL)
) OR EXISTS (SELECT FROM audit AS a WHERE a.subject = u.id::text AND a.action = 'credit_line');

-- name: violations_since
-- Numbers missing or doubled on a stream, seen since a moment.
SELECT shard, kind, epoch, expected_seq, seq, stream_id FROM fence_violations WHERE seen_at >= %(moment)s::timestamptz ORDER BY id DESC LIMIT %(limit)s;

-- name: open_conflicts
-- Events that could not be booked as they came and that nobody has looked after.
SELECT id, hold_id, reason, kind, charge_nanos, detail, payload ->> 'payer_id' AS payer_id FROM conflicts
WHERE resolved_at IS NULL ORDER BY id DESC LIMIT %(limit)s;

-- name: add_findings
-- Each finding once, as long as it lasts.
INSERT INTO reconcile_findings AS f (invariant, what, subject, account, expected, found, drift_nanos)
SELECT DISTINCT ON (r.invariant, r.what, r.subject) r.invariant, r.what, r.subject, r.account, r.expected, r.found, r.drift_nanos
FROM json_to_recordset(%(rows)s::json) AS r (
    invariant smallint, what text, subject text, account text, expected text, found text, drift_nanos numeric)
ORDER BY r.invariant, r.what, r.subject
ON CONFLICT (invariant, what, subject) WHERE resolved_at IS NULL DO UPDATE SET
    expected = excluded.expected, found = excluded.found, drift_nanos = excluded.drift_nanos, times = f.times + 1, last_seen_at = now();

-- name: resolve_findings
-- A later look found these whole.
UPDATE reconcile_findings AS f SET resolved_at = now()
FROM json_to_recordset(%(rows)s::json) AS r (invariant smallint, what text, subject text)
WHERE f.invariant = r.invariant AND f.what = r.what AND f.subject = r.subject AND f.resolved_at IS NULL;

-- name: resolve_unseen
-- What a full run, begun at this moment, did not find again.
UPDATE reconcile_findings SET resolved_at = now() WHERE resolved_at IS NULL AND last_seen_at < %(moment)s::timestamptz;

-- name: open_findings
-- How many findings stand, and their drift, by invariant.
SELECT invariant, count(*) AS count, sum(abs(drift_nanos))::numeric AS drift_nanos FROM reconcile_findings
WHERE resolved_at IS NULL GROUP BY invariant;

-- name: last_run
-- The newest full run.
SELECT id, started_at::text AS started_at, (extract(epoch FROM started_at) * 1000)::bigint AS started_ms,
    (extract(epoch FROM finished_at) * 1000)::bigint AS finished_ms, phase, after, looked_at, findings
FROM reconcile_runs ORDER BY id DESC LIMIT 1;

-- name: last_finished_run
-- When a full run was finished last.
SELECT (extract(epoch FROM max(finished_at)) * 1000)::bigint AS finished_ms FROM reconcile_runs;

-- name: begin_run
-- A full run begins.
INSERT INTO reconcile_runs DEFAULT VALUES RETURNING id, started_at::text AS started_at,
    (extract(epoch FROM started_at) * 1000)::bigint AS started_ms, NULL::bigint AS finished_ms, phase, after, looked_at, findings;

-- name: advance_run
-- Where a full run stands.
UPDATE reconcile_runs SET phase = %(phase)s, after = %(after)s, looked_at = looked_at + %(looked_at)s, findings = findings + %(findings)s
WHERE id = %(id)s;

-- name: finish_run
-- A full run is done.
UPDATE reconcile_runs SET finished_at = now() WHERE id = %(id)s;

-- name: billed_until
-- A moment until which everything that is booked can be read: no transaction that began before it is still at work.
SELECT (now() - interval '15 seconds')::text AS moment;

-- name: billed_between
-- Tokens of the rows that were booked between two moments, by model, as a backend counts them: a prompt once for each of its answers.
SELECT model, sum(input_tokens::bigint * greatest(choices, 1) + output_tokens)::bigint AS tokens, count(*) AS requests FROM requests
WHERE posted_at >= %(since)s::timestamptz AND posted_at < %(until)s::timestamptz AND ending <> 'none' GROUP BY model;
