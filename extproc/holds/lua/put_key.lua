#!lua
-- name: put_key
-- uses: amount, hold
-- Stores what admit and amend enforce of a key; the newest version wins.
-- ARGV: payer, key, version, then fields and values.
local K = key_key(KEYS[1], ARGV[1], ARGV[2])
local stored = redis.call('HGET', K, 'version')
if stored and not less(stored, ARGV[3]) then return 0 end
redis.call('HSET', K, 'version', ARGV[3], unpack(ARGV, 4))
return 1
