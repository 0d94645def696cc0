#!lua flags=allow-oom
-- name: freeze
-- uses: clock, amount, hold
-- Freezes a payer or lets it go, with a version of its own; 0 = the payer is missing.
-- ARGV: epoch, payer, version, '0' or '1'.
clock(KEYS[1], ARGV[1])
local P = payer_key(KEYS[1], ARGV[2])
local stored = redis.call('HMGET', P, 'version', 'frozen_version')
if not stored[1] then return 0 end
if less(stored[2], ARGV[3]) then redis.call('HSET', P, 'frozen_version', ARGV[3], 'frozen', ARGV[4]) end
return 1
