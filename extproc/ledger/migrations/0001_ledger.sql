-- The ledger and the accounts. Names of tables are fixed (PRODUCT.md). Amounts are bigint nanos (10^-9 of the currency) everywhere;
-- sums of them are numeric. Ids are UUIDv7, made by the program, so that ranges of ids are ranges of time and a unique key fits a partition.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL DEFAULT '' CHECK (length(email) <= 320),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    tier text NOT NULL CHECK (length(tier) BETWEEN 1 AND 100),
    frozen boolean NOT NULL DEFAULT false,
    frozen_version bigint NOT NULL DEFAULT 0 CHECK (frozen_version >= 0),
    frozen_redis_version bigint NOT NULL DEFAULT 0 CHECK (frozen_redis_version <= frozen_version),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE email <> '';
CREATE INDEX users_undelivered ON users (id) WHERE frozen_redis_version < frozen_version;
COMMENT ON TABLE users IS 'Accounts: users.id is the payer of everything its keys do.';

CREATE TABLE credentials (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    hash bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    hint text NOT NULL DEFAULT '' CHECK (length(hint) <= 8),
    name text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    models text[] NOT NULL DEFAULT '{}',
    networks text[] NOT NULL DEFAULT '{}',
    expires_at timestamptz,
    revoked boolean NOT NULL DEFAULT false,
    sandbox boolean NOT NULL DEFAULT false,
    budget_nanos bigint CHECK (budget_nanos >= 0),
    budget_period text NOT NULL DEFAULT 'none' CHECK (budget_period IN ('none', 'day', 'month')),
    requests_per_minute integer CHECK (requests_per_minute >= 0),
    requests_per_hour integer CHECK (requests_per_hour >= 0),
    tokens_per_minute integer CHECK (tokens_per_minute >= 0),
    concurrent_requests integer CHECK (concurrent_requests >= 0),
    version bigint NOT NULL DEFAULT 1 CHECK (version >= 1),
    redis_version bigint CHECK (redis_version <= version),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz
);
CREATE INDEX credentials_user ON credentials (user_id, created_at);
CREATE INDEX credentials_undelivered ON credentials (id) WHERE redis_version IS DISTINCT FROM version;
COMMENT ON COLUMN credentials.hash IS 'SHA-256 of the secret; the secret itself is nowhere.';
COMMENT ON COLUMN credentials.hint IS 'The last characters of the secret, to tell keys apart in a list.';
COMMENT ON COLUMN credentials.redis_version IS 'The version that Redis confirmed; NULL: never delivered.';

CREATE TABLE balances (
    user_id uuid PRIMARY KEY REFERENCES users (id),
    balance bigint NOT NULL DEFAULT 0 CHECK (abs(balance) <= 4000000000000000000),
    free_quota_input bigint NOT NULL DEFAULT 0 CHECK (free_quota_input >= 0),
    free_quota_output bigint NOT NULL DEFAULT 0 CHECK (free_quota_output >= 0),
    version bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    credited_total bigint NOT NULL DEFAULT 0,
    credit_nanos bigint NOT NULL DEFAULT 0 CHECK (credit_nanos >= 0),
    redis_version bigint CHECK (redis_version <= version),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);  -- updated by every batch: room for heap-only updates
CREATE INDEX balances_undelivered ON balances (user_id) WHERE redis_version IS DISTINCT FROM version;
COMMENT ON COLUMN balances.balance IS 'Posted balance = sum of the account''s entries. Kept by the poster.';
COMMENT ON COLUMN balances.credited_total IS 'Everything ever sent to Redis by credit(), cumulative: doubled or late delivery is harmless.';
COMMENT ON COLUMN balances.redis_version IS 'The version that Redis confirmed; NULL: the payer was never installed there.';

CREATE TABLE price_versions (
    price_id text PRIMARY KEY CHECK (length(price_id) = 64),
    price text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    CHECK (price_id = encode(sha256(convert_to(price, 'UTF8')), 'hex'))
);
COMMENT ON TABLE price_versions IS 'Resolved prices in full: a charge can be recomputed for ever.';

CREATE TABLE requests (
    id uuid NOT NULL,
    request_id text NOT NULL DEFAULT '',
    user_id uuid,
    creds_id uuid,
    model text NOT NULL DEFAULT '',
    endpoint text NOT NULL DEFAULT '',
    priority text NOT NULL DEFAULT '',
    tier text NOT NULL DEFAULT '',
    stream boolean NOT NULL DEFAULT false,
    input_tokens integer NOT NULL DEFAULT 0,
    cached_tokens integer NOT NULL DEFAULT 0,
    output_tokens integer NOT NULL DEFAULT 0,
    reasoning_tokens integer NOT NULL DEFAULT 0,
    usage_source text NOT NULL DEFAULT 'none',
    usage_flags text[] NOT NULL DEFAULT '{}',
    events integer NOT NULL DEFAULT 0,
    ending text NOT NULL CHECK (ending IN ('settle', 'void', 'expire', 'none')),
    end_reason text NOT NULL DEFAULT '',
    hold_nanos bigint NOT NULL DEFAULT 0,
    cost bigint NOT NULL DEFAULT 0,
    refund_nanos bigint NOT NULL DEFAULT 0,
    list_nanos bigint NOT NULL DEFAULT 0,
    overage_nanos bigint NOT NULL DEFAULT 0,
    loss_nanos bigint NOT NULL DEFAULT 0,
    price_id text NOT NULL DEFAULT '',
    status integer NOT NULL DEFAULT 0,
    error_code text NOT NULL DEFAULT '',
    error_msg text NOT NULL DEFAULT '',
    upstream text NOT NULL DEFAULT '',
    attempts integer NOT NULL DEFAULT 0,
    duration_ms integer NOT NULL DEFAULT 0,
    ttft_ms integer NOT NULL DEFAULT 0,
    sandbox boolean NOT NULL DEFAULT false,
    shadow boolean NOT NULL DEFAULT false,
    times integer NOT NULL DEFAULT 1 CHECK (times >= 1),
    created_at timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id),
    CHECK (cached_tokens BETWEEN 0 AND input_tokens AND reasoning_tokens BETWEEN 0 AND output_tokens),
    CHECK (cost >= 0 AND hold_nanos >= 0 AND list_nanos >= 0 AND overage_nanos >= 0 AND loss_nanos >= 0),
    CHECK (ending IN ('settle', 'expire') OR cost + overage_nanos + loss_nanos = 0),
    CHECK (refund_nanos = hold_nanos - least(cost + loss_nanos, hold_nanos))
) PARTITION BY RANGE (id);
CREATE TABLE requests_default PARTITION OF requests DEFAULT;
CREATE INDEX requests_user ON requests (user_id, created_at);
CREATE INDEX requests_model ON requests (model, created_at);
CREATE INDEX requests_request_id ON requests (request_id) WHERE request_id <> '';
CREATE INDEX requests_posted ON requests USING brin (posted_at) WITH (pages_per_range = 16, autosummarize = on);
COMMENT ON COLUMN requests.id IS 'The hold id; for a request that never had a hold, the id of its exchange.';
COMMENT ON COLUMN requests.request_id IS 'Envoy''s x-request-id.';
COMMENT ON COLUMN requests.cost IS 'What the customer was charged, nanos.';
COMMENT ON COLUMN requests.refund_nanos IS 'Given back of the hold.';
COMMENT ON COLUMN requests.overage_nanos IS 'Used beyond the cap: on the operator.';
COMMENT ON COLUMN requests.loss_nanos IS 'Charged late and not covered by the balance: on the operator (loss:late).';
COMMENT ON COLUMN requests.times IS 'More than 1: this row stands for so many refusals of one key, reason and minute.';

CREATE TABLE billing_events (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    event_type text NOT NULL CHECK (event_type IN (
        'deposit', 'bonus', 'redemption', 'settle', 'void', 'expire', 'adjust', 'overage', 'usage_refund', 'payout',
        'dispute_opened', 'dispute_won', 'dispute_lost', 'correction', 'writeoff', 'bonus_expiry', 'quota_grant')),
    amount bigint NOT NULL,
    balance_after bigint NOT NULL,
    charge_nanos bigint NOT NULL DEFAULT 0 CHECK (charge_nanos >= 0),
    of_id uuid,
    shard smallint,
    epoch text NOT NULL DEFAULT '',
    seq bigint CHECK (seq > 0),
    metadata jsonb NOT NULL DEFAULT '{}',
    occurred_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id),
    CHECK (event_type NOT IN ('void', 'overage') OR amount = 0),
    CHECK (event_type NOT IN ('settle', 'expire', 'adjust') OR amount BETWEEN -charge_nanos AND 0),
    CHECK (event_type NOT IN ('deposit', 'bonus', 'redemption', 'usage_refund', 'dispute_won') OR amount > 0),
    CHECK (event_type NOT IN ('adjust', 'overage') OR of_id IS NOT NULL)
) PARTITION BY RANGE (id);
CREATE TABLE billing_events_default PARTITION OF billing_events DEFAULT;
CREATE INDEX billing_events_user ON billing_events (user_id, created_at);
CREATE INDEX billing_events_of ON billing_events (of_id) WHERE of_id IS NOT NULL;
CREATE INDEX billing_events_seq ON billing_events (shard, seq) WHERE seq IS NOT NULL;
COMMENT ON COLUMN billing_events.id IS 'An ending has the id of its hold, whatever its kind: a hold ends once. Others have ids derived from what caused them.';
COMMENT ON COLUMN billing_events.amount IS 'Change of the customer''s balance, nanos; the sum of an account''s amounts is its balance.';
COMMENT ON COLUMN billing_events.charge_nanos IS 'What was to be charged, nanos; more than -amount only if the rest became loss:late.';
COMMENT ON COLUMN billing_events.of_id IS 'The event that this one corrects or completes.';

CREATE TABLE entries (
    event_id uuid NOT NULL,
    line smallint NOT NULL CHECK (line >= 0),
    kind text NOT NULL CHECK (kind IN ('customer', 'revenue', 'clearing', 'promo', 'fees', 'tax', 'disputes', 'loss')),
    name text NOT NULL DEFAULT '',
    user_id uuid,
    unit text NOT NULL DEFAULT 'nanos' CHECK (unit IN ('nanos', 'free_input', 'free_output')),
    amount bigint NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (event_id, line),
    CHECK ((kind = 'customer') = (user_id IS NOT NULL))
) PARTITION BY RANGE (event_id);
CREATE TABLE entries_default PARTITION OF entries DEFAULT;
CREATE INDEX entries_user ON entries (user_id, event_id) WHERE user_id IS NOT NULL;
COMMENT ON TABLE entries IS 'Double entry: the lines of an event sum to 0 per unit. A customer''s sum is what he may still spend.';

CREATE FUNCTION entries_must_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bad uuid;
BEGIN
    SELECT event_id INTO bad FROM inserted GROUP BY event_id, unit HAVING sum(amount) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entries of event % do not sum to zero', bad USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
-- Once per statement, not per row: all lines of an event are inserted by one statement, so this costs one aggregate a batch.
CREATE TRIGGER entries_balance AFTER INSERT ON entries
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION entries_must_balance();

CREATE FUNCTION is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: a correction is a new event', TG_TABLE_NAME USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries FOR EACH STATEMENT EXECUTE FUNCTION is_append_only();
CREATE TRIGGER billing_events_append_only BEFORE UPDATE OR DELETE ON billing_events FOR EACH STATEMENT EXECUTE FUNCTION is_append_only();

CREATE TABLE topups (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    amount bigint NOT NULL CHECK (amount > 0),
    method text NOT NULL CHECK (length(method) BETWEEN 1 AND 50),
    status text NOT NULL CHECK (status IN ('pending', 'paid', 'failed', 'refunded')),
    payment_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    paid_at timestamptz,
    UNIQUE (method, payment_id),
    CHECK ((status IN ('paid', 'refunded')) = (paid_at IS NOT NULL))
);
CREATE INDEX topups_user ON topups (user_id, created_at);

CREATE TABLE stream_cursors (
    shard smallint PRIMARY KEY CHECK (shard >= 0),
    stream_id text NOT NULL DEFAULT '0-0',
    epoch text NOT NULL DEFAULT '',
    seq bigint NOT NULL DEFAULT 0 CHECK (seq >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON TABLE stream_cursors IS 'Up to where each shard''s stream is posted; written in the transaction that posts.';

CREATE TABLE fence_violations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard smallint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('gap', 'duplicate')),
    epoch text NOT NULL,
    expected_seq bigint NOT NULL,
    seq bigint NOT NULL,
    stream_id text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE conflicts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hold_id text NOT NULL,
    reason text NOT NULL CHECK (reason IN ('other_amount', 'other_payer', 'unknown_payer', 'bad_event', 'bad_row', 'rejected')),
    kind text NOT NULL,
    charge_nanos numeric NOT NULL,
    shard smallint NOT NULL,
    stream_id text NOT NULL,
    detail text NOT NULL DEFAULT '',
    payload jsonb NOT NULL,
    digest text NOT NULL,
    resolved_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (digest, reason)
);
COMMENT ON COLUMN conflicts.payload IS 'The event as it came; its row in base64, because it may be anything.';
COMMENT ON TABLE conflicts IS 'Events that could not be booked as they came, whole: alarmed, never dropped, never guessed.';

CREATE TABLE refusal_windows (
    key text NOT NULL,
    reason text NOT NULL,
    minute timestamptz NOT NULL,
    seen integer NOT NULL CHECK (seen >= 0),
    PRIMARY KEY (key, reason, minute)
);
COMMENT ON TABLE refusal_windows IS 'How many refusals of a key, reason and minute were seen, to bound their rows; kept for a day.';

CREATE TABLE audit (
    id uuid PRIMARY KEY,
    actor text NOT NULL CHECK (length(actor) BETWEEN 1 AND 200),
    action text NOT NULL CHECK (length(action) BETWEEN 1 AND 100),
    subject text NOT NULL,
    reason text NOT NULL DEFAULT '',
    detail jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_subject ON audit (subject, created_at);

CREATE FUNCTION uuid7_floor(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT rpad(lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;
COMMENT ON FUNCTION uuid7_floor IS 'The smallest UUIDv7 of a millisecond: ranges of time as ranges of ids.';

-- Monthly partitions of the tables that grow, from this month on. A month that cannot be made (rows of it are in the default
-- partition already, or somebody holds a lock) is skipped: its rows go on into the default partition, where everything works as well.
CREATE FUNCTION ensure_partitions(months_ahead integer, moment timestamptz DEFAULT now()) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    made integer := 0;
    parent text;
    first timestamptz;
    partition text;
BEGIN
    FOR ahead IN 0..months_ahead LOOP
        first := (date_trunc('month', moment AT TIME ZONE 'UTC') + make_interval(months => ahead)) AT TIME ZONE 'UTC';
        FOREACH parent IN ARRAY ARRAY['requests', 'billing_events', 'entries'] LOOP
            partition := format('%s_%s', parent, to_char(first AT TIME ZONE 'UTC', '"y"YYYY"m"MM'));
            CONTINUE WHEN to_regclass(partition) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', partition, parent,
                    uuid7_floor(first), uuid7_floor((first AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'));
                made := made + 1;
            EXCEPTION WHEN check_violation OR duplicate_table OR lock_not_available THEN
                RAISE NOTICE 'partition % was not made: %', partition, SQLERRM;
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;
SELECT ensure_partitions(3);
