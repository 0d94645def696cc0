#!lua flags=allow-oom
-- name: credit
-- uses: clock, amount, hold
-- Applies the difference of a newer cumulative total and credit line to a payer; 0 = the payer is missing, or another ledger's.
-- ARGV: epoch, payer, version, total, credit.
clock(KEYS[1], ARGV[1])
local P = payer_key(KEYS[1], ARGV[2])
local version, total, credit = ARGV[3], ARGV[4], ARGV[5]
local stored = redis.call('HMGET', P, 'version', 'total', 'credit')
if not stored[1] then return 0 end
-- The same version says something else: the ledger fell back to an older copy, and has counted on from there.
if stored[1] == version and (stored[2] ~= total or stored[3] ~= credit) then return 0 end
if not less(stored[1], version) then return 1 end
-- stored − new, in the field itself: both are at most int64, so is their difference.
local more, line = neg(sum(P, 'total', neg(total))), neg(sum(P, 'credit', neg(credit)))
if less(more, line) then more, line = line, more end
add(P, 'spendable', line) -- the lesser first: what fits at the end, fits on the way
add(P, 'spendable', more)
redis.call('HSET', P, 'version', version, 'total', total, 'credit', credit)
return 1
