#!lua flags=allow-oom
-- name: witness
-- uses: clock, amount, hold, quota
-- Requests of open holds are over: their checkpoints rise, capped, and their leases run out soon; the owner may still end them before.
-- ARGV: epoch, grace_ms, then hold, charge, row, free tokens used, of each.
local S = KEYS[1]
local last = clock(S, ARGV[1]) + tonumber(ARGV[2])
local open = 0
for i = 3, #ARGV, 4 do
  local id, charge, row, used = unpack(ARGV, i, i + 3)
  local H = hold_key(S, id)
  local hold = redis.call('HMGET', H, 'state', 'checkpoint', 'cap', 'free', 'used')
  if hold[1] == 'entry' or hold[1] == 'exact' then
    if less(hold[3], charge) then charge = hold[3] end
    local is_more = less(hold[2], charge)
    if hold[4] then
      local Q = quota()
      is_more = not less(charge, hold[2]) and Q.covers(hold[4], used) and Q.covers(used, hold[5]) and (is_more or not Q.covers(hold[5], used))
    end
    if is_more then redis.call('HSET', H, 'checkpoint', charge, 'row', row) end
    if is_more and hold[4] then redis.call('HSET', H, 'used', used == '' and NO_TOKENS or used) end
    redis.call('ZADD', S .. ':leases', 'XX', 'LT', string.format('%d', last), id)
    open = open + 1
  end
end
return open
