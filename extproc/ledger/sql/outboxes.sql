-- name: outbox_positions
-- Which ledger this is (a cluster, and how often it was promoted), and up to where it has what outboxes keep.
SELECT (SELECT system_identifier FROM pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS ledger_id,
    p.outbox_id::text AS outbox_id, p.below
FROM (SELECT 1) AS one LEFT JOIN outbox_positions AS p ON true;

-- name: unbooked_endings
-- Numbers of those of these holds, of these payers, that did not end with these charges.
WITH found AS (
    SELECT id, user_id, charge_nanos FROM billing_events WHERE id = ANY(%(ids)s::uuid[])
)
SELECT r.number
FROM unnest(%(ids)s::uuid[], %(payers)s::uuid[], %(charges)s::bigint[]) WITH ORDINALITY AS r (id, payer, charge, number)
LEFT JOIN found AS f ON f.id = r.id AND f.user_id = r.payer AND f.charge_nanos = r.charge
WHERE f.id IS NULL ORDER BY 1;

-- name: unknown_endings
-- Of these, those that were neither set aside nor booked, be it by an adjust after an expire. An expire is also what more was booked for.
SELECT r.number
FROM json_to_recordset(%(rows)s::json) AS r (
    number integer, id uuid, payer uuid, charge bigint, free_input bigint, free_output bigint, is_expire boolean, digest text)
WHERE NOT EXISTS (SELECT FROM conflicts AS c WHERE c.digest = r.digest)
    AND NOT EXISTS (
        SELECT FROM billing_events AS v LEFT JOIN billing_events AS a ON a.of_id = v.id AND a.event_type = 'adjust'
        CROSS JOIN LATERAL (SELECT
            v.charge_nanos + coalesce(a.charge_nanos, 0) AS charge, coalesce(v.free_input, 0) + coalesce(a.free_input, 0) AS free_input,
            coalesce(v.free_output, 0) + coalesce(a.free_output, 0) AS free_output) AS used
        WHERE v.id = r.id AND v.user_id = r.payer AND (
            (used.charge = r.charge AND used.free_input = r.free_input AND used.free_output = r.free_output)
            OR (r.is_expire AND used.charge >= r.charge AND used.free_input >= r.free_input AND used.free_output >= r.free_output)))
ORDER BY 1;

-- name: move_outbox
-- Forward, never back; nothing, if the ledger does not know any more from where.
INSERT INTO outbox_positions AS p (outbox_id, below)
SELECT %(outbox)s::uuid, %(below)s WHERE %(known)s = 0 OR EXISTS (SELECT FROM outbox_positions WHERE outbox_id = %(outbox)s::uuid)
ON CONFLICT (outbox_id) DO UPDATE SET below = greatest(p.below, excluded.below), moved_at = now() WHERE p.below >= %(known)s
RETURNING below;

-- name: forget_outbox
-- An outbox is gone, and everything that was in it is here.
DELETE FROM outbox_positions WHERE outbox_id = %(outbox)s::uuid;
