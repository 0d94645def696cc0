#!lua flags=allow-oom
-- name: beat
-- uses: clock, amount, hold, quota
-- Renews the leases of open holds and raises their checkpoints, capped; ended, unknown and foreign holds are left alone.
-- ARGV: epoch, lease_ms, age_ms_max (no lease goes beyond it), then hold, owner, charge, row ('' = as it was), free tokens used, of each.
local S = KEYS[1]
local lease_ms, age_ms_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local now = clock(S, ARGV[1])
local renewed = 0
for i = 4, #ARGV, 5 do
  local id, owner, charge, row, used = unpack(ARGV, i, i + 4)
  local H = hold_key(S, id)
  local hold = redis.call('HMGET', H, 'state', 'owner', 'checkpoint', 'cap', 'created', 'free')
  if (hold[1] == 'entry' or hold[1] == 'exact') and hold[2] == owner then
    if less(hold[4], charge) then charge = hold[4] end
    if not hold[6] or (quota().covers(used, redis.call('HGET', H, 'used')) and quota().covers(hold[6], used)) then
      if less(hold[3], charge) then redis.call('HSET', H, 'checkpoint', charge) end
      if row ~= '' and not less(charge, hold[3]) then redis.call('HSET', H, 'row', row) end
      if hold[6] and not less(charge, hold[3]) then redis.call('HSET', H, 'used', used == '' and NO_TOKENS or used) end
    end
    local last = math.min(now + lease_ms, tonumber(hold[5]) + age_ms_max)
    redis.call('ZADD', S .. ':leases', 'XX', string.format('%d', last), id)
    renewed = renewed + 1
  end
end
return renewed
