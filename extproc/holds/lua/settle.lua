#!lua flags=allow-oom
-- name: settle
-- uses: clock, amount, hold, quota, period, budget, correction, ending, late
-- Settles or voids a hold, once; a second ending is a named result, and an unknown hold leaves a tombstone that turns away what is late.
-- (What that charges, on credit while Redis was away, is for the ledger to take; the key's budget counts it here.)
-- ARGV: epoch, hold, owner, kind, charge, tokens, row, payer, key, and free tokens used, if any.
local S = KEYS[1]
local epoch, id, owner, kind, charge = unpack(ARGV, 1, 5)
local tokens, row, used = tonumber(ARGV[6]), ARGV[7], ARGV[10]
local now = clock(S, epoch)
local h = open_hold(S, id)
if h.state == 'alias' then h = open_hold(S, h.to) end
if not h.state then
  tombstone(S, id, owner, kind, charge)
  charge_budget(S, ARGV[8], ARGV[9], charge, now)
  return 'unknown'
end
if h.state == 'ended' then
  if kind == 'settle' and h.owner == owner then late(S, h, charge, row, epoch, now, used) end
  return 'already'
end
if h.owner ~= owner then return 'taken' end
-- Who was served on credit, because nobody could tell whether he was held, pays with money: an entry hold has no cap, and that of a hold
-- that took free tokens counts beside them. What is not reserved is for the ledger to take.
if h.state == 'exact' and less(h.cap, charge) and (used or not h.free) then
  return redis.error_reply('REFUSED the charge is above the cap of the hold')
end
if used and not quota().covers(h.free, used) then return redis.error_reply('REFUSED more free tokens are used than the hold has') end
finish(S, h, now, kind, charge, tokens, row, epoch, used)
return 'ended'
