#!lua flags=allow-oom
-- name: freeze
-- uses: amount, hold
-- Freezes a payer or lets it go, with a version of its own; 0 = the payer is missing.
-- ARGV: payer, version, '0' or '1'.
local P = payer_key(KEYS[1], ARGV[1])
local stored = redis.call('HMGET', P, 'version', 'frozen_version')
if not stored[1] then return 0 end
if less(stored[2], ARGV[2]) then redis.call('HSET', P, 'frozen_version', ARGV[2], 'frozen', ARGV[3]) end
return 1
