#!lua
-- name: put_key
-- uses: clock, amount, hold
-- Stores what admit and amend enforce of a key; the newest version wins.
-- ARGV: epoch, payer, key, version, then fields and values.
clock(KEYS[1], ARGV[1])
local K = key_key(KEYS[1], ARGV[2], ARGV[3])
local stored = redis.call('HGET', K, 'version')
if stored and not less(stored, ARGV[4]) then return 0 end
redis.call('HSET', K, 'version', ARGV[4], unpack(ARGV, 5))
return 1
