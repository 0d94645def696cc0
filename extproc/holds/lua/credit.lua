#!lua flags=allow-oom
-- name: credit
-- uses: clock, amount, hold, quota
-- Applies the difference of a newer cumulative total and credit line to a payer; 0 = the payer is missing, or another ledger's.
-- ARGV: epoch, payer, version, total, credit, total of the free tokens.
clock(KEYS[1], ARGV[1])
local P = payer_key(KEYS[1], ARGV[2])
local version, total, credit, tokens = unpack(ARGV, 3, 6)
local stored = redis.call('HMGET', P, 'version', 'total', 'credit', 'total_input', 'total_output')
local stored_tokens = (stored[4] or '0') .. ':' .. (stored[5] or '0')
if not stored[1] then return 0 end
-- The same version says something else: the ledger fell back to an older copy, and has counted on from there.
if stored[1] == version and (stored[2] ~= total or stored[3] ~= credit or stored_tokens ~= tokens) then return 0 end
if not less(stored[1], version) then return 1 end
-- stored − new, in the field itself: both are at most int64, so is their difference.
local more, line = neg(sum(P, 'total', neg(total))), neg(sum(P, 'credit', neg(credit)))
if less(more, line) then more, line = line, more end
add(P, 'spendable', line) -- the lesser first: what fits at the end, fits on the way
add(P, 'spendable', more)
redis.call('HSET', P, 'version', version, 'total', total, 'credit', credit)
if stored_tokens ~= tokens then
  local input, output = string.match(tokens, '^(-?%d+):(-?%d+)$')
  add(P, 'free_input', neg(sum(P, 'total_input', neg(input)) or '0'))
  add(P, 'free_output', neg(sum(P, 'total_output', neg(output)) or '0'))
  redis.call('HSET', P, 'total_input', input, 'total_output', output)
end
return 1
