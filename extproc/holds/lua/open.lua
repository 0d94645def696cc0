#!lua flags=allow-oom
-- name: open
-- uses: clock, amount, hold, period, budget, building
-- The shard serves again, and its events are numbered from 1. The reaper sees a new epoch: nothing expires for one lease.
-- ARGV: epoch.
local S, epoch = KEYS[1], ARGV[1]
local _, open, rebuilding, counting = state(S)
if open == epoch then return 0 end
if rebuilding ~= epoch or not counting then fenced(S, epoch, open or rebuilding) end
-- Holds that were asserted before anybody knew their key: whose budget they use up is known now.
for _, id in ipairs(redis.call('ZRANGE', S .. ':leases', '0', '-1')) do
  local h = redis.call('HMGET', hold_key(S, id), 'state', 'period', 'payer', 'key', 'reserved', 'created')
  if h[1] == 'exact' and h[2] == '' then count_budget(S, id, h[3], h[4], h[5], h[6]) end
end
redis.call('HDEL', S .. ':shard', 'rebuilding', 'counting')
redis.call('HSET', S .. ':shard', 'epoch', epoch, 'seq', '0')
redis.call('DEL', S .. ':asserted')
return 1
