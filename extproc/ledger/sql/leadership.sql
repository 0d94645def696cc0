-- name: try_shards
-- Takes the shards that nobody holds; none of them waits.
SELECT shard FROM unnest(%(shards)s::integer[]) AS shard WHERE pg_try_advisory_lock(%(class)s::integer, shard);
