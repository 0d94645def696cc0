-- name: insert_user
-- A new account.
INSERT INTO users (id, email, name, tier) VALUES (%(id)s::uuid, %(email)s, %(name)s, %(tier)s);

-- name: insert_balance
-- Its money: none, and not yet in Redis.
INSERT INTO balances (user_id) VALUES (%(id)s::uuid);

-- name: account_of_id
-- One account.
SELECT id::text AS id, name, email, tier, frozen, price_factor, changes, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS created_at
FROM users WHERE id = %(id)s::uuid;

-- name: accounts_named
-- Accounts with this e-mail address or name, oldest first.
SELECT id::text AS id, name, email, tier, frozen, price_factor, changes, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS created_at
FROM users WHERE lower(email) = lower(%(name)s) OR name = %(name)s ORDER BY created_at, id LIMIT 2;

-- name: list_accounts
-- Accounts page by page, by id, which is by age.
SELECT id::text AS id, name, email, tier, frozen, price_factor, changes, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS created_at
FROM users WHERE %(after)s::uuid IS NULL OR id > %(after)s::uuid ORDER BY id LIMIT %(limit)s;

-- name: freeze_user
-- Freezes an account or lets it go; answers the new version if that changed anything.
UPDATE users SET frozen = %(frozen)s, frozen_version = frozen_version + 1
WHERE id = %(id)s::uuid AND frozen <> %(frozen)s RETURNING frozen_version AS version;

-- name: freeze_is_delivered
-- One row if the account is frozen (or not) as asked, and Redis has confirmed it.
SELECT id::text AS id FROM users WHERE id = %(id)s::uuid AND frozen = %(frozen)s AND frozen_redis_version = frozen_version;

-- name: account_to_change
-- One account, which nobody else changes until this transaction ends.
SELECT id::text AS id, name, email, tier, frozen, price_factor, changes, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS created_at
FROM users WHERE id = %(id)s::uuid FOR UPDATE;

-- name: set_terms
-- Its tier and price factor (millionths), and what they become later.
UPDATE users SET tier = %(tier)s, price_factor = %(price_factor)s, changes = %(changes)s::jsonb WHERE id = %(id)s::uuid;

-- name: undelivered_freezes
-- Freezes that Redis has not confirmed, page by page.
SELECT id::text AS payer_id, frozen, frozen_version AS version FROM users
WHERE frozen_redis_version < frozen_version AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid) ORDER BY id LIMIT %(limit)s;

-- name: confirm_freeze
-- Redis has this version; never backwards. An old master, whose epoch is not the ledger's any more, has confirmed nothing.
UPDATE users SET frozen_redis_version = greatest(frozen_redis_version, least(%(version)s, frozen_version))
WHERE id = %(id)s::uuid AND NOT EXISTS (SELECT FROM shard_epochs AS e WHERE e.shard = shard_of(users.id) AND e.epoch <> %(epoch)s);

-- name: insert_audit
-- Who did what to whom, and why.
INSERT INTO audit (id, actor, action, subject, reason) VALUES (%(id)s::uuid, %(actor)s, %(action)s, %(subject)s, %(reason)s);

-- name: confirm_install
-- Redis has this new payer, unless it was an old master.
UPDATE balances SET redis_version = greatest(coalesce(redis_version, 0), 0)
WHERE user_id = %(id)s::uuid AND NOT EXISTS (SELECT FROM shard_epochs AS e WHERE e.shard = shard_of(user_id) AND e.epoch <> %(epoch)s);
