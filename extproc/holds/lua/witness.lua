#!lua flags=allow-oom
-- name: witness
-- uses: clock, amount, hold
-- Requests of open holds are over: their checkpoints rise, capped, and their leases run out soon; the owner may still end them before.
-- ARGV: epoch, grace_ms, then hold, charge, row of each.
local S = KEYS[1]
local last = clock(S, ARGV[1]) + tonumber(ARGV[2])
local open = 0
for i = 3, #ARGV, 3 do
  local id, charge, row = unpack(ARGV, i, i + 2)
  local H = hold_key(S, id)
  local hold = redis.call('HMGET', H, 'state', 'checkpoint', 'cap')
  if hold[1] == 'entry' or hold[1] == 'exact' then
    if less(hold[3], charge) then charge = hold[3] end
    if less(hold[2], charge) then redis.call('HSET', H, 'checkpoint', charge, 'row', row) end
    redis.call('ZADD', S .. ':leases', 'XX', 'LT', string.format('%d', last), id)
    open = open + 1
  end
end
return open
