-- name: read_witness_log
-- Up to where an access log has been read.
SELECT inode::text AS inode, offset_bytes, before FROM witness_logs WHERE log = %(log)s;

-- name: price_texts
-- Prices in full, of requests that were cut off.
SELECT price_id, price FROM price_versions WHERE price_id = ANY(%(price_ids)s);

-- name: move_witness_log
-- It has been read up to here.
INSERT INTO witness_logs (log, inode, offset_bytes, before) VALUES (%(log)s, %(inode)s, %(offset)s, %(before)s)
ON CONFLICT (log) DO UPDATE SET
    inode = excluded.inode, offset_bytes = excluded.offset_bytes, before = excluded.before, updated_at = now();

-- name: keep_reasons
-- Reasons from an access log; the first one of a request stands.
INSERT INTO witness_reasons (hold_id, end_reason)
SELECT r.hold_id, r.end_reason FROM json_to_recordset(%(rows)s::json) AS r (hold_id uuid, end_reason text)
ON CONFLICT (hold_id) DO NOTHING;

-- name: fill_reasons
-- Gives rows that could not tell why they ended the reason that waits for them, and forgets reasons whose row is there, or never came.
-- LATERAL … LIMIT: a look by key for each of them, however many requests there are and whatever the planner thinks of a young table.
WITH waiting AS (
    SELECT hold_id, end_reason, seen_at FROM witness_reasons ORDER BY hold_id LIMIT %(limit)s
), met AS (
    SELECT w.hold_id, w.end_reason FROM waiting AS w
    CROSS JOIN LATERAL (SELECT 1 FROM requests AS q WHERE q.id = w.hold_id LIMIT 1) AS found
), told AS (
    UPDATE requests AS q SET end_reason = met.end_reason FROM met
    WHERE q.id = met.hold_id AND q.end_reason IN ('cut', 'sidecar_lost')
    RETURNING 1
), forgotten AS (
    DELETE FROM witness_reasons AS w USING waiting LEFT JOIN met USING (hold_id)
    WHERE w.hold_id = waiting.hold_id AND (met.hold_id IS NOT NULL OR waiting.seen_at < now() - interval '1 day')
    RETURNING 1
)
SELECT
    (SELECT count(*) FROM told) AS told, (SELECT count(*) FROM waiting) - (SELECT count(*) FROM forgotten) AS waiting;

-- name: forget_witness_logs
-- Logs of hosts that are gone.
DELETE FROM witness_logs WHERE updated_at < now() - interval '30 days';

-- name: count_witness_endings
-- How many are kept.
SELECT count(*) AS kept FROM witness_endings;

-- name: keep_witness_endings
-- What Envoy's line says of requests whose end the gate has not told; the first line of a hold stands.
INSERT INTO witness_endings (hold_id, payer_id, key_id, request_id, status, cap_nanos, price_id, figures, log)
SELECT r.hold_id, r.payer_id, r.key_id, r.request_id, r.status, r.cap_nanos, r.price_id, r.figures, %(log)s
FROM json_to_recordset(%(rows)s::json) AS r (
    hold_id uuid, payer_id uuid, key_id uuid, request_id text, status integer, cap_nanos bigint, price_id text, figures json
)
ON CONFLICT (hold_id) DO NOTHING;

-- name: look_at_witness_endings
-- The next holds of which the ledger still has no ending, and whether every other way has had its time: of lines of other hosts, whose settlers
-- see outboxes that we do not, a longer one. Those that have an ending are forgotten.
-- LATERAL … LIMIT: as above.
WITH page AS (
    SELECT * FROM witness_endings WHERE hold_id > %(after)s::uuid ORDER BY hold_id LIMIT %(limit)s
), met AS (
    SELECT page.*, found.id IS NOT NULL AS is_ended FROM page
    LEFT JOIN LATERAL (SELECT e.id FROM billing_events AS e WHERE e.id = page.hold_id LIMIT 1) AS found ON true
), forgotten AS (
    DELETE FROM witness_endings AS w USING met
    WHERE w.hold_id = met.hold_id AND (met.is_ended OR met.seen_at < now() - interval '1 day')
)
SELECT
    hold_id::text AS hold_id, payer_id::text AS payer_id, key_id::text AS key_id, request_id, status, cap_nanos, price_id,
    figures::text AS figures, (extract(epoch FROM seen_at) * 1000)::bigint AS seen_ms,
    seen_at < now() - (%(ripe_s)s + CASE WHEN log IN ('', %(log)s) THEN 0 ELSE %(others_s)s END) * interval '1 second' AS is_ripe
FROM met WHERE NOT is_ended ORDER BY hold_id;

-- name: forget_witness_endings
-- Booked, or never to be.
DELETE FROM witness_endings WHERE hold_id = ANY(%(hold_ids)s::uuid[]);
