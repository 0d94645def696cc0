-- name: make_cursors
-- A shard is met for the first time.
INSERT INTO stream_cursors (shard) SELECT unnest(%(shards)s::smallint[]) ON CONFLICT (shard) DO NOTHING;

-- name: lock_cursors
-- The cursors of these shards, locked until the batch is committed: two posters cannot post one event twice.
SELECT shard, stream_id, epoch, seq FROM stream_cursors WHERE shard = ANY(%(shards)s::smallint[]) ORDER BY shard FOR UPDATE;

-- name: read_cursors
-- Where the streams of these shards are to be read on from.
SELECT shard, stream_id, epoch, seq FROM stream_cursors WHERE shard = ANY(%(shards)s::smallint[]);

-- name: move_cursors
-- Everything up to here is posted.
UPDATE stream_cursors AS c
SET stream_id = m.stream_id, epoch = m.epoch, seq = m.seq, updated_at = now()
FROM json_to_recordset(%(rows)s::json) AS m (shard smallint, stream_id text, epoch text, seq bigint)
WHERE c.shard = m.shard;

-- name: lock_balances
-- The payers of a batch, locked in one order, so that balance_after is true and two writers cannot meet in a deadlock.
SELECT user_id::text AS user_id, balance, credit_nanos, free_quota_input, free_quota_output FROM balances
WHERE user_id = ANY(%(payers)s::uuid[]) ORDER BY user_id FOR NO KEY UPDATE;

-- name: named_causes_of
-- What payouts, disputes, corrections and lowered lines took of these payers in the time that a hold may live (four hours, and its lease);
-- each at most what a balance can hold, so that their sum is a bigint.
SELECT u.id::text AS user_id, (
    SELECT least(4e18, coalesce(-sum(e.amount), 0)) FROM billing_events AS e
    WHERE e.user_id = u.id AND e.created_at > now() - interval '5 hours' AND e.amount < 0 AND e.event_type NOT IN ('settle', 'expire', 'adjust')
)::bigint + (
    SELECT least(4e18, coalesce(sum(greatest(0, (a.detail ->> 'before_nanos')::bigint - (a.detail ->> 'after_nanos')::bigint)), 0)) FROM audit AS a
    WHERE a.subject = u.id::text AND a.created_at > now() - interval '5 hours' AND a.action = 'credit_line'
)::bigint AS nanos
FROM unnest(%(payers)s::uuid[]) AS u (id);

-- name: find_endings
-- Which of these holds have an ending already.
SELECT id::text AS id, event_type, user_id::text AS user_id, charge_nanos, charge_nanos + amount AS loss_nanos,
    coalesce(free_input, 0) AS free_input, coalesce(free_output, 0) AS free_output
FROM billing_events WHERE id = ANY(%(ids)s::uuid[]);

-- name: find_rows
-- Which of these requests have a row already.
SELECT id::text AS id FROM requests WHERE id = ANY(%(ids)s::uuid[]);

-- name: find_followers
-- What was booked after the endings of these holds: adjusts and overages.
SELECT of_id::text AS of_id, event_type, charge_nanos, coalesce(free_input, 0) AS free_input, coalesce(free_output, 0) AS free_output
FROM billing_events
WHERE of_id = ANY(%(ids)s::uuid[]) AND event_type IN ('adjust', 'overage');

-- name: count_refusals
-- Adds to the number of refusals of a key, reason and minute; answers how many there had been before.
INSERT INTO refusal_windows AS w (key, reason, minute, seen)
SELECT r.key, r.reason, timestamptz 'epoch' + r.minute * interval '1 millisecond', r.n
FROM json_to_recordset(%(rows)s::json) AS r (key text, reason text, minute bigint, n integer)
ORDER BY 1, 2, 3
ON CONFLICT (key, reason, minute) DO UPDATE SET seen = w.seen + excluded.seen
RETURNING key, reason, (extract(epoch FROM minute) * 1000)::bigint AS minute, seen;

-- name: insert_prices
-- Prices in full, before the rows that name them.
INSERT INTO price_versions (price_id, price)
SELECT r.price_id, r.price FROM json_to_recordset(%(rows)s::json) AS r (price_id text, price text) ORDER BY 1
ON CONFLICT (price_id) DO NOTHING;

-- name: copy_events
-- Events of money, a line each (ledger/lines.py). One that is there already stops the batch: it is tried again, and meets it.
COPY billing_events (id, user_id, event_type, amount, balance_after, charge_nanos, of_id, shard, epoch, seq, metadata, occurred_at, late_period, free_input, free_output)
FROM STDIN;

-- name: copy_entries
-- The lines of these events; a trigger holds each event's sum to zero.
COPY entries (event_id, line, kind, name, user_id, unit, amount) FROM STDIN;

-- name: copy_requests
-- One row per request.
COPY requests (
    id, request_id, user_id, creds_id, model, endpoint, priority, tier, stream, input_tokens, cached_tokens, output_tokens,
    reasoning_tokens, usage_source, usage_flags, events, ending, end_reason, hold_nanos, cost, refund_nanos, list_nanos, overage_nanos,
    loss_nanos, price_id, status, error_code, error_msg, upstream, attempts, duration_ms, ttft_ms, sandbox, shadow, would_deny, policies,
    times, created_at, occurred_at) FROM STDIN;

-- name: copy_rare_requests
-- The same of those that used what most do not (ledger/rows.py: RARE); the others do not pay for these columns.
COPY requests (
    cache_creation_tokens, image_tokens, audio_tokens, images, audio_ms, input_characters, output_characters, input_words, output_words,
    free_input, free_output, choices,
    id, request_id, user_id, creds_id, model, endpoint, priority, tier, stream, input_tokens, cached_tokens, output_tokens,
    reasoning_tokens, usage_source, usage_flags, events, ending, end_reason, hold_nanos, cost, refund_nanos, list_nanos, overage_nanos,
    loss_nanos, price_id, status, error_code, error_msg, upstream, attempts, duration_ms, ttft_ms, sandbox, shadow, would_deny, policies,
    times, created_at, occurred_at) FROM STDIN;

-- name: replace_requests
-- After an adjust the row is the settle's: what the request really used. Its ending, hold and first moment stay; so does a reason that a
-- witness has told, where the settle knows none. What it does not name is nothing.
UPDATE requests AS q SET
    model = r.model, input_tokens = r.input_tokens, cached_tokens = r.cached_tokens, output_tokens = r.output_tokens,
    reasoning_tokens = r.reasoning_tokens, cache_creation_tokens = coalesce(r.cache_creation_tokens, 0),
    image_tokens = coalesce(r.image_tokens, 0), audio_tokens = coalesce(r.audio_tokens, 0), images = coalesce(r.images, 0),
    audio_ms = coalesce(r.audio_ms, 0), input_characters = coalesce(r.input_characters, 0),
    output_characters = coalesce(r.output_characters, 0), input_words = coalesce(r.input_words, 0),
    output_words = coalesce(r.output_words, 0), free_input = coalesce(r.free_input, 0), free_output = coalesce(r.free_output, 0),
    choices = coalesce(r.choices, 0),
    usage_source = r.usage_source, usage_flags = r.usage_flags, events = r.events,
    end_reason = CASE WHEN r.end_reason = 'cut' AND q.end_reason NOT IN ('', 'sidecar_lost') THEN q.end_reason ELSE r.end_reason END,
    cost = r.cost, refund_nanos = q.hold_nanos - least(r.cost + r.loss_nanos, q.hold_nanos),
    list_nanos = r.list_nanos, overage_nanos = greatest(q.overage_nanos, r.overage_nanos), loss_nanos = r.loss_nanos,
    price_id = r.price_id, status = r.status, error_code = r.error_code, error_msg = r.error_msg, duration_ms = r.duration_ms,
    ttft_ms = r.ttft_ms, policies = r.policies, posted_at = now()
FROM json_to_recordset(%(rows)s::json) AS r (
    id uuid, model text, input_tokens integer, cached_tokens integer, output_tokens integer, reasoning_tokens integer,
    cache_creation_tokens integer, image_tokens integer, audio_tokens integer, images integer, audio_ms integer, input_characters integer,
    output_characters integer, input_words integer, output_words integer, free_input integer, free_output integer, choices integer,
    usage_source text, usage_flags text[], events integer, end_reason text, cost bigint, list_nanos bigint, overage_nanos bigint, loss_nanos bigint,
    price_id text, status integer, error_code text, error_msg text, duration_ms integer, ttft_ms integer, policies text[])
WHERE q.id = r.id;

-- name: add_refusals
-- Rows that stand for many refusals of one key, reason and minute.
INSERT INTO requests AS q (
    id, user_id, creds_id, model, endpoint, priority, tier, ending, end_reason, status, error_code, error_msg, shadow, would_deny, times,
    created_at, occurred_at)
SELECT
    r.id, r.user_id, r.creds_id, r.model, r.endpoint, r.priority, r.tier, 'none', r.end_reason, r.status, r.error_code, r.error_msg,
    r.shadow, r.would_deny, r.times, timestamptz 'epoch' + r.created_ms * interval '1 millisecond', timestamptz 'epoch' + r.occurred_ms * interval '1 millisecond'
FROM json_to_recordset(%(rows)s::json) AS r (
    id uuid, user_id uuid, creds_id uuid, model text, endpoint text, priority text, tier text, end_reason text, status integer,
    error_code text, error_msg text, shadow boolean, would_deny text, times integer, created_ms bigint, occurred_ms bigint)
ON CONFLICT (id) DO UPDATE SET times = q.times + excluded.times, posted_at = now();

-- name: change_balances
-- The balances after a batch; what Redis has yet to be told raises the version.
UPDATE balances AS b SET
    balance = b.balance + r.amount,
    credited_total = b.credited_total + r.credited,
    version = b.version + (r.credited <> 0)::integer,
    updated_at = now()
FROM json_to_recordset(%(rows)s::json) AS r (user_id uuid, amount bigint, credited bigint)
WHERE b.user_id = r.user_id;

-- name: change_quotas
-- The free tokens of payers who have any, likewise.
UPDATE balances AS b SET
    free_quota_input = b.free_quota_input + r.input,
    free_quota_output = b.free_quota_output + r.output,
    credited_input = b.credited_input + r.credited_input,
    credited_output = b.credited_output + r.credited_output,
    version = b.version + (r.credited_input <> 0 OR r.credited_output <> 0)::integer,
    updated_at = now()
FROM json_to_recordset(%(rows)s::json) AS r (user_id uuid, input bigint, output bigint, credited_input bigint, credited_output bigint)
WHERE b.user_id = r.user_id;

-- name: add_spend
-- What keys have spent, by the day of the hold; rotated keys together.
INSERT INTO budget_spend AS b (budget_id, day, nanos)
SELECT coalesce(c.budget_id, c.id), ((timestamptz 'epoch' + r.quarter * interval '15 minutes') AT TIME ZONE 'UTC')::date, sum(r.nanos)::bigint
FROM json_to_recordset(%(rows)s::json) AS r (key uuid, quarter bigint, nanos bigint) JOIN credentials AS c ON c.id = r.key
GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (budget_id, day) DO UPDATE SET nanos = b.nanos + excluded.nanos;

-- name: insert_conflicts
-- Events that could not be booked as they came, each once; answers how many were new.
WITH added AS (
    INSERT INTO conflicts (hold_id, reason, kind, charge_nanos, shard, stream_id, detail, payload, digest)
    SELECT r.hold_id, r.reason, r.kind, r.charge_nanos, r.shard, r.stream_id, r.detail, r.payload, r.digest
    FROM json_to_recordset(%(rows)s::json) AS r (
        hold_id text, reason text, kind text, charge_nanos numeric, shard smallint, stream_id text, detail text, payload jsonb, digest text)
    ON CONFLICT (digest, reason) DO NOTHING
    RETURNING 1
)
SELECT count(*) AS added FROM added;

-- name: insert_violations
-- Numbers missing or doubled on a shard's stream.
INSERT INTO fence_violations (shard, kind, epoch, expected_seq, seq, stream_id)
SELECT r.shard, r.kind, r.epoch, r.expected_seq, r.seq, r.stream_id
FROM json_to_recordset(%(rows)s::json) AS r (
    shard smallint, kind text, epoch text, expected_seq bigint, seq bigint, stream_id text);
