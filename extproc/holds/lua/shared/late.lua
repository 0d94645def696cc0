-- The owner's settle comes after the reaper has ended the hold at its last checkpoint: what it knows better goes to the ledger, once, as
-- an event without a number. The ledger books the difference, and what that takes from the balance comes back as a credit. The budget counts
-- it here: nobody brings it back.
local function late_of_budget(S, h, charge)
  local H = hold_key(S, h.id)
  local spent = redis.call('HGET', H, 'spent')
  if not spent or not less(spent, charge) then return end -- (a program before this one wrote the tombstone)
  if h.period == '' then h.budget, h.period = budget_of(S, h.payer, h.key, tonumber(h.created)) end
  if not h.budget or not use_budget(S, h.payer, h.budget, h.period, '', charge, '0') then return end
  add(budget_key(S, h.payer, h.budget, h.period), 'used', neg(spent))
  redis.call('HSET', H, 'spent', charge)
end

local function late(S, h, charge, row, epoch, now, used)
  local H = hold_key(S, h.id)
  local kind, amount = unpack(redis.call('HMGET', H, 'kind', 'amount'))
  if kind ~= 'expire' or not h.payer or less(charge, amount) then return end
  late_of_budget(S, h, charge)
  if less(h.reserved, charge) then return end -- on credit: the outbox brings it, whole
  local Q = quota()
  if not Q.covers(h.free, used) or not Q.covers(used, h.used) then return end
  if charge == amount and Q.covers(h.used, used) then return end
  redis.call('HSET', H, 'amount', charge)
  if h.free then redis.call('HSET', H, 'used', used or NO_TOKENS) end
  event(S, h, 'settle', charge, epoch, 0, now, row, used)
end
