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
