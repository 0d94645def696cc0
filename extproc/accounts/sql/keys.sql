-- name: key_of_hash
-- The key with this hash, with the tier of its account and what its delivery needs.
SELECT c.id::text AS id, c.user_id::text AS user_id, c.hash, c.name, u.tier, u.price_factor, u.changes, c.models, c.networks,
    coalesce((extract(epoch FROM c.expires_at) * 1000)::bigint, 0) AS expires_ms, c.revoked, c.sandbox, c.budget_nanos, c.budget_period,
    c.requests_per_minute, c.requests_per_hour, c.tokens_per_minute, c.concurrent_requests, c.version,
    coalesce(c.budget_id, c.id)::text AS budget_id
FROM credentials AS c JOIN users AS u ON u.id = c.user_id
WHERE c.hash = %(hash)s;

-- name: key_of_id
-- The key with this id, the same way.
SELECT c.id::text AS id, c.user_id::text AS user_id, c.hash, c.name, u.tier, u.price_factor, u.changes, c.models, c.networks,
    coalesce((extract(epoch FROM c.expires_at) * 1000)::bigint, 0) AS expires_ms, c.revoked, c.sandbox, c.budget_nanos, c.budget_period,
    c.requests_per_minute, c.requests_per_hour, c.tokens_per_minute, c.concurrent_requests, c.version,
    coalesce(c.budget_id, c.id)::text AS budget_id
FROM credentials AS c JOIN users AS u ON u.id = c.user_id
WHERE c.id = %(id)s::uuid;

-- name: undelivered_keys
-- Keys whose version Redis has not confirmed, page by page.
SELECT c.id::text AS id, c.user_id::text AS user_id, c.hash, c.name, u.tier, u.price_factor, u.changes, c.models, c.networks,
    coalesce((extract(epoch FROM c.expires_at) * 1000)::bigint, 0) AS expires_ms, c.revoked, c.sandbox, c.budget_nanos, c.budget_period,
    c.requests_per_minute, c.requests_per_hour, c.tokens_per_minute, c.concurrent_requests, c.version,
    coalesce(c.budget_id, c.id)::text AS budget_id
FROM credentials AS c JOIN users AS u ON u.id = c.user_id
WHERE c.redis_version IS DISTINCT FROM c.version AND (%(after)s::uuid IS NULL OR c.id > %(after)s::uuid)
ORDER BY c.id LIMIT %(limit)s;

-- name: keys_of_payers
-- All keys of some accounts, the same way: for a rebuild.
SELECT c.id::text AS id, c.user_id::text AS user_id, c.hash, c.name, u.tier, u.price_factor, u.changes, c.models, c.networks,
    coalesce((extract(epoch FROM c.expires_at) * 1000)::bigint, 0) AS expires_ms, c.revoked, c.sandbox, c.budget_nanos, c.budget_period,
    c.requests_per_minute, c.requests_per_hour, c.tokens_per_minute, c.concurrent_requests, c.version,
    coalesce(c.budget_id, c.id)::text AS budget_id
FROM credentials AS c JOIN users AS u ON u.id = c.user_id
WHERE c.user_id = ANY(%(payers)s::uuid[]);

-- name: confirm_key
-- Redis has this version; never backwards. An old master, whose epoch is not the ledger's any more, has confirmed nothing.
UPDATE credentials SET redis_version = greatest(coalesce(redis_version, 0), least(%(version)s, version))
WHERE id = %(id)s::uuid AND NOT EXISTS (SELECT FROM shard_epochs AS e WHERE e.shard = shard_of(user_id) AND e.epoch <> %(epoch)s);

-- name: insert_key
-- A new key; nothing of its secret but the hash and a hint.
INSERT INTO credentials (
    id, user_id, hash, hint, name, models, networks, expires_at, sandbox, budget_nanos, budget_period, requests_per_minute,
    requests_per_hour, tokens_per_minute, concurrent_requests, budget_id)
VALUES (
    %(id)s::uuid, %(user_id)s::uuid, %(hash)s, %(hint)s, %(name)s, %(models)s, %(networks)s,
    timestamptz 'epoch' + nullif(%(expires_ms)s::bigint, 0) * interval '1 millisecond', %(sandbox)s, %(budget_nanos)s, %(budget_period)s,
    %(requests_per_minute)s, %(requests_per_hour)s, %(tokens_per_minute)s, %(concurrent_requests)s,
    %(budget_id)s::uuid);

-- name: revoke_key
-- From now on this key is none; answers whether it was one. Its version rises once.
UPDATE credentials SET revoked = true, version = version + 1 WHERE id = %(id)s::uuid AND NOT revoked RETURNING id::text AS id;

-- name: renew_keys
-- Redis has to hear of the keys of an account again, since something of the account has changed; answers which.
UPDATE credentials SET version = version + 1 WHERE user_id = %(user_id)s::uuid AND NOT revoked RETURNING id::text AS id;

-- name: list_keys
-- The keys of an account, oldest first.
SELECT c.id::text AS id, c.user_id::text AS user_id, c.hint, c.name, c.models, c.networks,
    to_char(c.expires_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS expires_at, c.revoked, c.sandbox, c.budget_nanos, c.budget_period,
    c.requests_per_minute, c.requests_per_hour, c.tokens_per_minute, c.concurrent_requests,
    to_char(c.created_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS created_at, c.redis_version IS NOT DISTINCT FROM c.version AS delivered
FROM credentials AS c WHERE c.user_id = %(user_id)s::uuid ORDER BY c.created_at, c.id LIMIT %(limit)s;
