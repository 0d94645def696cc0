-- name: newest_requests
-- The newest requests of an account (or of all), newest first.
SELECT q.*, to_char(q.posted_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || ' ' || q.id AS cursor FROM requests AS q
WHERE %(payer)s::uuid IS NULL OR q.user_id = %(payer)s::uuid
ORDER BY q.created_at DESC, q.id DESC LIMIT %(limit)s;

-- name: requests_posted_after
-- Requests that were posted after a moment and id, oldest first: what a follower has not seen.
SELECT q.*, to_char(q.posted_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || ' ' || q.id AS cursor FROM requests AS q
WHERE q.posted_at >= %(moment)s::timestamptz AND (q.posted_at, q.id) > (%(moment)s::timestamptz, %(id)s::uuid)
    AND (%(payer)s::uuid IS NULL OR q.user_id = %(payer)s::uuid)
ORDER BY q.posted_at, q.id LIMIT %(limit)s;

-- name: request_of_id
-- One request by its hold id.
SELECT * FROM requests WHERE id = %(id)s::uuid;

-- name: request_of_envoy_id
-- The newest request with this x-request-id (a retry of a client may repeat it).
SELECT * FROM requests WHERE request_id = %(request_id)s AND request_id <> '' ORDER BY id DESC LIMIT 1;

-- name: price_text
-- A price in full.
SELECT price FROM price_versions WHERE price_id = %(price_id)s;

-- name: events_of_request
-- The ending and what followed from it.
SELECT * FROM billing_events WHERE id = %(id)s::uuid OR of_id = %(id)s::uuid ORDER BY created_at, id;

-- name: entries_of_events
-- The lines of these events.
SELECT * FROM entries WHERE event_id = ANY(%(ids)s::uuid[]) ORDER BY event_id, line;

-- name: make_partitions
-- The months to come.
SELECT ensure_partitions(%(months)s) AS made;

-- name: forget_refusal_windows
-- Windows that no refusal can fall into any more.
DELETE FROM refusal_windows WHERE minute < now() - interval '1 day';
