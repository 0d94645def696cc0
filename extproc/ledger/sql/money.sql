-- name: balance_of
-- One account's money.
SELECT user_id::text AS payer_id, balance AS balance_nanos, version, credited_total, credit_nanos, redis_version,
    free_quota_input AS free_input, free_quota_output AS free_output, credited_input, credited_output
FROM balances WHERE user_id = %(payer)s::uuid;

-- name: lock_balance
-- The same, locked for a change.
SELECT user_id::text AS payer_id, balance AS balance_nanos, version, credited_total, credit_nanos, redis_version,
    free_quota_input AS free_input, free_quota_output AS free_output, credited_input, credited_output
FROM balances WHERE user_id = %(payer)s::uuid FOR NO KEY UPDATE;

-- name: undelivered_balances
-- Balances whose version Redis has not confirmed, by payer, page by page.
SELECT user_id::text AS payer_id, balance AS balance_nanos, version, credited_total, credit_nanos, redis_version,
    free_quota_input AS free_input, free_quota_output AS free_output, credited_input, credited_output
FROM balances
WHERE redis_version IS DISTINCT FROM version AND (%(after)s::uuid IS NULL OR user_id > %(after)s::uuid)
ORDER BY user_id LIMIT %(limit)s;

-- name: confirm_balance
-- Redis has this version; never backwards. An old master, whose epoch is not the ledger's any more, has confirmed nothing.
UPDATE balances SET redis_version = greatest(coalesce(redis_version, 0), least(%(version)s, version))
WHERE user_id = %(payer)s::uuid AND NOT EXISTS (SELECT FROM shard_epochs AS e WHERE e.shard = shard_of(user_id) AND e.epoch <> %(epoch)s);

-- name: set_credit_line
-- A new credit line, and the version that brings it to Redis.
UPDATE balances SET credit_nanos = %(credit)s, version = version + 1, updated_at = now() WHERE user_id = %(payer)s::uuid;

-- name: find_event
-- Was this booked before?
SELECT id::text AS id, user_id::text AS user_id, event_type, amount, of_id::text AS of_id, free_input, free_output,
    metadata ->> 'provider' AS provider, metadata ->> 'reference' AS reference
FROM billing_events WHERE id = %(id)s::uuid;

-- name: find_payment
-- The deposit that a provider's payment became.
SELECT id::text AS id, user_id::text AS user_id, amount, status, method AS provider, payment_id AS reference
FROM topups WHERE method = %(method)s AND payment_id = %(payment)s;

-- name: charge_of_request
-- What a request has cost its payer, and what he got back of it since; locked by its payer's balance, not by itself.
SELECT id::text AS request_id, user_id::text AS payer_id, model, cost AS charged_nanos, refunded_nanos FROM requests
WHERE id = %(id)s::uuid AND user_id IS NOT NULL;

-- name: add_refund
-- Given back of a request's cost; the table holds it to the cost.
UPDATE requests SET refunded_nanos = refunded_nanos + %(amount)s WHERE id = %(id)s::uuid;

-- name: insert_topup
-- A payment that has arrived.
INSERT INTO topups (id, user_id, amount, method, status, payment_id, created_at, paid_at)
VALUES (%(id)s::uuid, %(payer)s::uuid, %(amount)s, %(method)s, 'paid', %(payment)s,
    timestamptz 'epoch' + %(occurred_ms)s * interval '1 millisecond', timestamptz 'epoch' + %(occurred_ms)s * interval '1 millisecond');
