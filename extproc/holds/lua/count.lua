#!lua flags=allow-oom
-- name: count
-- uses: clock, building
-- From now on nobody asserts what he holds in this shard until it is open: its holds can be counted.
-- ARGV: epoch.
local S, epoch = KEYS[1], ARGV[1]
local _, open, rebuilding = state(S)
if rebuilding ~= epoch then fenced(S, epoch, open or rebuilding) end
redis.call('HSET', S .. ':shard', 'counting', '1')
return 1
