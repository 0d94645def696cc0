#!lua flags=allow-oom
-- name: reassert
-- uses: clock, amount, hold, quota, period, budget, correction, ending, late, building
-- What a worker holds open, and endings that the ledger may lack. While the shard is built the sums are nobody's: they are counted afterwards.
-- In an open shard, for a worker that comes late, each hold that was not there is summed at once.
-- ARGV: epoch, worker ('' = it has more to say), lease_ms, age_ms_max, number of holds, then hold, owner, payer, key, state, entry, reserved,
-- cap, charge, tokens, row, created, free tokens held and used of each hold, then kind, hold, payer, key, charge, reserved, occurred, row, free
-- tokens used of each ending.
-- Answers how many holds an open shard could not take, for want of their payer or key.
local S, epoch, worker = KEYS[1], ARGV[1], ARGV[2]
local lease_ms, age_ms_max, endings = tonumber(ARGV[3]), tonumber(ARGV[4]), 6 + 14 * tonumber(ARGV[5])
local seen, open, rebuilding, counting = state(S)
local is_open = open == epoch
if not is_open and (rebuilding ~= epoch or counting) then fenced(S, epoch, open or rebuilding) end
local now, Q = time(S, seen), quota()

local function is_pending(h) return h.state == 'entry' or h.state == 'exact' end

local function summed(h, payer, key, entry, reserved, free)
  local P, K = payer_key(S, payer), key_key(S, payer, key)
  if redis.call('HEXISTS', P, 'version') == 0 or redis.call('HEXISTS', K, 'version') == 0 then return false end
  if not (fits(P, 'held', reserved) and fits(P, 'spendable', neg(reserved)) and fits(P, 'entry_held', entry)) then return false end
  add(P, 'held', reserved)
  add(P, 'spendable', neg(reserved))
  add(P, 'entry_held', entry)
  Q.add(P, 'held', free)
  Q.add(P, 'free', free, -1)
  if h.state then
    add(P, 'entry_held', neg(h.entry))
  else
    redis.call('HINCRBY', P, 'open', 1)
    redis.call('HINCRBY', K, 'open', 1)
  end
  return true
end

local refused = 0
for i = 6, endings - 1, 14 do
  local id, owner, payer, key, as, entry, reserved, cap, charge, tokens, row, created, free, used = unpack(ARGV, i, i + 13)
  local h, H = open_hold(S, id), hold_key(S, id)
  local last = math.min(now + lease_ms, tonumber(created) + age_ms_max)
  if not h.state or (h.state == 'entry' and as == 'exact') then -- it was lost, or the amend that made it exact was
    if is_open and not summed(h, payer, key, entry, reserved, free) then
      refused = refused + 1
    else
      redis.call('HSET', H, 'state', as, 'owner', owner, 'payer', payer, 'key', key, 'entry', entry, 'reserved', reserved, 'cap', cap,
        'checkpoint', less(cap, charge) and cap or charge, 'tokens', tokens, 'period', '', 'row', row, 'created', created)
      if free ~= '' then redis.call('HSET', H, 'free', free, 'used', used == '' and NO_TOKENS or used) end
      redis.call('ZADD', S .. ':leases', string.format('%d', last), id)
      if is_open and as == 'exact' then count_budget(S, id, payer, key, reserved, created) end
    end
  elseif is_pending(h) and h.owner == owner then
    if less(h.cap, charge) then charge = h.cap end
    local is_more = less(h.checkpoint, charge)
    if h.free then
      is_more = not less(charge, h.checkpoint) and Q.covers(h.free, used) and Q.covers(used, h.used) and (is_more or not Q.covers(h.used, used))
    end
    if is_more then redis.call('HSET', H, 'checkpoint', charge, 'row', row) end
    if is_more and h.free then redis.call('HSET', H, 'used', used == '' and NO_TOKENS or used) end
    redis.call('ZADD', S .. ':leases', 'XX', string.format('%d', last), id)
  end
end

for i = endings, #ARGV, 9 do
  local kind, id, payer, key, charge, reserved, occurred, row, used = unpack(ARGV, i, i + 8)
  local h = open_hold(S, id)
  if h.state == 'ended' then
    if kind == 'settle' then late(S, h, charge, row, epoch, now, used) end
  elseif is_open and is_pending(h) and not less(h.cap, charge) and Q.covers(h.free, used) then
    finish(S, h, now, kind, charge, nil, row, epoch, used)
  else -- past the sums of Redis: the ledger books it, and tells an open shard by a credit
    if is_open and is_pending(h) then give_back(S, h, '0', charge) end
    redis.call('ZREM', S .. ':leases', id)
    tombstone(S, id, h.owner or id, kind, charge)
    event(S, { id = id, payer = payer, key = key, reserved = reserved }, kind, charge, epoch, 0, tonumber(occurred), row, used)
  end
end
if worker ~= '' and not is_open then redis.call('SADD', S .. ':asserted', worker) end
return refused
