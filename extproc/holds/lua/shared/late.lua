-- The owner's settle comes after the reaper has ended the hold at its last checkpoint: what it knows better goes to the ledger, once, as
-- an event without a number. The ledger books the difference, and what that takes from the balance comes back as a credit.
local function late(S, h, charge, row, epoch, now, used)
  local H = hold_key(S, h.id)
  local kind, amount = unpack(redis.call('HMGET', H, 'kind', 'amount'))
  if kind ~= 'expire' or not h.payer then return end
  if less(h.reserved, charge) then return end -- on credit: the outbox brings it, whole
  local Q = quota()
  if less(charge, amount) or not Q.covers(h.free, used) or not Q.covers(used, h.used) then return end
  if charge == amount and Q.covers(h.used, used) then return end
  redis.call('HSET', H, 'amount', charge)
  if h.free then redis.call('HSET', H, 'used', used or NO_TOKENS) end
  event(S, h, 'settle', charge, epoch, 0, now, row, used)
end
