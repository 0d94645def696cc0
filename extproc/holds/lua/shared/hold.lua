-- A hold's key is its hash while it is open, and its tombstone (state "ended", kind, amount, owner) for 15 minutes after its end.
-- After a take-over the id that the second exchange proposed is an alias (state "alias", "to") of the first one's hold.
local TOMBSTONE_MS = '900000'

local function hold_key(S, id) return S .. ':hold:' .. id end

local function payer_key(S, payer) return S .. ':payer:' .. payer end

local function key_key(S, payer, key) return S .. ':key:' .. payer .. ':' .. key end

-- Of a line of rotated keys, whose first one names the counter (field "budget_id" of the key, "budget" of the hold).
local function budget_key(S, payer, budget, period) return S .. ':budget:' .. payer .. ':' .. budget .. ':' .. period end

local function lease(S, id, now, lease_ms)
  redis.call('ZADD', S .. ':leases', string.format('%d', now + lease_ms), id)
end
