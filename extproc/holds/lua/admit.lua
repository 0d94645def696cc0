#!lua
-- name: admit
-- uses: clock, amount, hold, quota, window, limits, verdict
-- A concurrency slot, a lease and a soft entry hold, if every limit and the balance (or a free quota) allow it; otherwise nothing at all.
-- ARGV: epoch, hold, payer, key, request id, entry, row, lease_ms, dedupe_ms, then rpm, rph, tpm, concurrent ('' = none) of account and of key,
-- then '1' for a shadow request: it holds nothing, and what would be denied is granted with its reason.
local S = KEYS[1]
local id, payer_id, key_id, request_id, entry, row = unpack(ARGV, 2, 7)
local lease_ms, dedupe_ms, is_shadow = tonumber(ARGV[8]), ARGV[9], ARGV[18] == '1'
local P, K, H = payer_key(S, payer_id), key_key(S, payer_id, key_id), hold_key(S, id)
local R = S .. ':request:' .. payer_id .. ':' .. request_id

local now = clock(S, ARGV[1])
local payer = redis.call('HMGET', P, 'version', 'spendable', 'open', 'frozen', 'rpm', 'rph', 'tpm', 'total_input')
local key = redis.call('HMGET', K, 'version', 'revoked', 'expires_ms', 'open', 'rpm', 'rph', 'tpm')
local spendable, rates = payer[2], {}
local free = payer[8] and quota().of(unpack(redis.call('HMGET', P, 'free_input', 'free_output'))) or nil
if free then entry = '0' end
rate(rates, 'requests', 'requests_per_minute', 'account', P, 'rpm', payer[5], now, MINUTE, ARGV[10])
rate(rates, 'requests', 'requests_per_hour', 'account', P, 'rph', payer[6], now, HOUR, ARGV[11])
rate(rates, 'tokens', 'tokens_per_minute', 'account', P, 'tpm', payer[7], now, MINUTE, ARGV[12])
rate(rates, 'requests', 'requests_per_minute', 'key', K, 'rpm', key[5], now, MINUTE, ARGV[14])
rate(rates, 'requests', 'requests_per_hour', 'key', K, 'rph', key[6], now, HOUR, ARGV[15])
rate(rates, 'tokens', 'tokens_per_minute', 'key', K, 'tpm', key[7], now, MINUTE, ARGV[16])

local function granted(hold, counted, refused)
  local limit, remaining, reset = tightest(rates, 'requests', counted)
  return granted_as(hold, free, spendable, refused, limit, remaining, reset, tightest(rates, 'tokens', 0))
end

local function barred()
  local expires_ms = tonumber(key[3] or '0')
  if payer[4] == '1' then return denied('frozen', 'account', '0', spendable) end
  if key[2] == '1' then return denied('key_revoked', 'key', '0', spendable) end
  if expires_ms > 0 and expires_ms <= now then return denied('key_expired', 'key', '0', spendable) end
end

local function limited()
  local over = exceeded(rates, 1)
  if over then return denied_by(over, 1, spendable) end
  local full = denied_slot('account', payer[3], ARGV[13], spendable) or denied_slot('key', key[4], ARGV[17], spendable)
  if full or entry == '0' then return full end
  add(P, 'entry_held', entry)
  local is_short = less(spendable, redis.call('HGET', P, 'entry_held'))
  if is_short or is_shadow then add(P, 'entry_held', neg(entry)) end
  if is_short then return short(P, entry, spendable, redis.call('HGET', P, 'held')) end
end

if not payer[1] then return denied('missing', 'account') end

-- The same call again (its answer was lost): the same answer, nothing twice.
local known, to = unpack(redis.call('HMGET', H, 'state', 'to'))
if known then
  local target = known == 'alias' and to or id
  local state, owner = unpack(redis.call('HMGET', hold_key(S, target), 'state', 'owner'))
  if state ~= 'entry' and state ~= 'exact' then return denied('ended') end
  if owner ~= id then return denied('taken') end
  return granted(target, 0)
end

if not key[1] then return denied('missing', 'key', '0', spendable) end
local refused = barred()
if refused and not is_shadow then return refused end

-- A retry of Envoy: the hold of its first try goes over to this exchange, which finds it under both ids.
local first = request_id ~= '' and redis.call('GET', R)
if first then
  local state, its_key = unpack(redis.call('HMGET', hold_key(S, first), 'state', 'key'))
  if state == 'entry' and its_key == key_id then
    redis.call('HSET', hold_key(S, first), 'owner', id, 'row', row)
    redis.call('HSET', H, 'state', 'alias', 'to', first)
    redis.call('PEXPIRE', H, TOMBSTONE_MS)
    lease(S, first, now, lease_ms)
    return granted(first, 0, refused)
  end
end

refused = refused or limited()
if is_shadow then entry = '0' elseif refused then return refused end
redis.call('HINCRBY', P, 'open', 1)
redis.call('HINCRBY', K, 'open', 1)
count(rates, 'requests', refused and 0 or 1)
redis.call('HSET', H, 'state', 'entry', 'owner', id, 'payer', payer_id, 'key', key_id, 'entry', entry, 'reserved', '0', 'cap', '0',
  'checkpoint', '0', 'tokens', '0', 'period', '', 'row', row, 'created', string.format('%d', now))
lease(S, id, now, lease_ms)
if request_id ~= '' then redis.call('SET', R, id, 'PX', dedupe_ms) end
return granted(id, refused and 0 or 1, refused)
