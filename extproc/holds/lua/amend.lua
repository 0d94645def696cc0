#!lua
-- name: amend
-- uses: clock, amount, hold, quota, window, limits, period, verdict
-- Entry hold to exact hold: the reserve leaves the balance and the entry hold is let go, or nothing changes.
-- ARGV: epoch, hold, owner, payer, key, reserved, cap, tokens, row, lease_ms, then tokens per minute ('' = none) of account and of key,
-- tokens per day of the account's sandbox keys ('' = none, or this is no such key), what a shadow request would reserve ('' = in earnest), and
-- '1' if it goes on whatever is said here (of trust, or in shadow): what does not fit is granted with its reason, and with nothing reserved;
-- then, if there are any, the free tokens to take ("input:output") and what is reserved with them. They are taken if all of them are there;
-- else money pays for everything. A grant says what was taken, a denial what there is.
local S = KEYS[1]
local id, owner, payer_id, key_id, reserved, cap = unpack(ARGV, 2, 7)
local tokens, row, lease_ms = tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])
local is_shadow, goes_on = ARGV[14] ~= '', ARGV[15] == '1'
local wanted, reserved_beside = ARGV[16], ARGV[17]
local P, K, H = payer_key(S, payer_id), key_key(S, payer_id, key_id), hold_key(S, id)

local now = clock(S, ARGV[1])
local hold = redis.call('HMGET', H, 'state', 'owner', 'entry', 'reserved', 'payer', 'key')
local payer = redis.call('HMGET', P, 'version', 'spendable', 'held', 'tpm', 'tpd')
local key = redis.call('HMGET', K, 'version', 'budget_nanos', 'budget_period', 'tpm', 'budget_id')
local rates = {}
rate(rates, 'tokens', 'tokens_per_minute', 'account', P, 'tpm', payer[4], now, MINUTE, ARGV[11])
rate(rates, 'tokens', 'tokens_per_minute', 'key', K, 'tpm', key[4], now, MINUTE, ARGV[12])
rate(rates, 'tokens', 'sandbox_tokens_per_day', 'account', P, 'tpd', payer[5], now, DAY_MS, ARGV[13])

local function granted(counted, refused, taken)
  return granted_as(id, taken or nil, redis.call('HGET', P, 'spendable'), refused, -1, 0, 0, tightest(rates, 'tokens', counted))
end

if not hold[1] or not payer[1] then return denied('missing', 'account') end
if hold[1] == 'ended' then return denied('ended') end
if hold[2] ~= owner then return denied('taken') end
if not key[1] then return denied('missing', 'key') end
if hold[5] ~= payer_id or hold[6] ~= key_id then return redis.error_reply('REFUSED the hold is of another payer or key') end
if hold[1] == 'exact' then
  local taken = wanted and redis.call('HGET', H, 'free')
  if hold[4] ~= (taken and reserved_beside or reserved) or (taken and taken ~= wanted) then
    return redis.error_reply('REFUSED the hold is exact already, with another amount')
  end
  return granted(0, nil, taken)
end

local free, taken
if wanted then
  free = quota().of(unpack(redis.call('HMGET', P, 'free_input', 'free_output')))
  if quota().covers(free, wanted) then taken, reserved, cap = wanted, reserved_beside, reserved_beside end
end
local required = is_shadow and ARGV[14] or reserved
local spendable, span, budget = payer[2], '', ''

-- Of two that are short the narrower one is told, by which a caller may ask for less.
local function over_budget(is_short)
  local forget_ms
  span, forget_ms = period(key[3], now)
  budget = key[5] or key_id
  local B = budget_key(S, payer_id, budget, span)
  local left = left_of(B, key[2]) -- less than nothing by what came late
  if less(left, required) and (not is_short or less(left, spendable)) then return denied('key_budget', 'key', required, left) end
  if is_short then span, budget = '', ''; return end
  if not is_shadow then add(B, 'used', required) end
  add(B, 'held', reserved)
  if forget_ms ~= '' then redis.call('PEXPIRE', B, forget_ms) end
end

local function limited()
  local over = exceeded(rates, tokens)
  if over then return denied_by(over, tokens, spendable) end
  local is_short = required ~= '0' and less(spendable, required)
  local over_key = key[2] and key[2] ~= '' and over_budget(is_short)
  return over_key or (is_short and short(P, required, spendable, payer[3])) or nil
end

local refused = limited()
if refused and not goes_on then refused[#refused + 1] = free; return refused end
if refused then tokens, reserved, taken = 0, '0', nil end -- nor does its end correct the tokens: it has no minute

add(P, 'spendable', neg(reserved))
add(P, 'held', reserved)
add(P, 'entry_held', neg(hold[3]))
count(rates, 'tokens', tokens)
redis.call('HSET', H, 'state', 'exact', 'entry', '0', 'reserved', reserved, 'cap', cap, 'tokens', string.format('%d', tokens),
  'minute', refused and '' or string.format('%d', math.floor(now / MINUTE)), 'period', span, 'budget', budget, 'row', row)
if ARGV[13] ~= '' then redis.call('HSET', H, 'sandbox', '1') end
if taken then
  quota().add(P, 'free', taken, -1)
  quota().add(P, 'held', taken)
  redis.call('HSET', H, 'free', taken, 'used', NO_TOKENS)
end
lease(S, id, now, lease_ms)
return granted(tokens, refused, taken)
