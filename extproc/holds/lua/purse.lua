#!lua flags=no-writes
-- name: purse
-- uses: clock, amount, hold, period, verdict
-- What an account has, and what a key has used of its budget in the present period.
-- Asked by the key itself, so it is refused to one that is over; a frozen account may know what it has. Answers spendable, credit, held,
-- total, used ('' = the key has no budget), then free tokens that nobody holds and those that requests hold, of prompts and of answers each.
-- ARGV: epoch, payer, key.
local S = KEYS[1]
local shard = redis.call('HMGET', S .. ':shard', 'now', 'epoch')
if shard[2] ~= ARGV[1] then fenced(S, ARGV[1], shard[2]) end
local t = redis.call('TIME')
local now = math.max(tonumber(shard[1] or '0'), tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000))

local payer = redis.call('HMGET', payer_key(S, ARGV[2]), 'spendable', 'credit', 'held', 'total', 'free_input', 'free_output', 'held_input',
  'held_output')
local key = redis.call('HMGET', key_key(S, ARGV[2], ARGV[3]), 'version', 'revoked', 'expires_ms', 'budget_nanos', 'budget_period', 'budget_id')
if not payer[1] then return denied('missing', 'account') end
if not key[1] then return denied('missing', 'key') end
local expires_ms = tonumber(key[3] or '0')
if key[2] == '1' then return denied('key_revoked', 'key') end
if expires_ms > 0 and expires_ms <= now then return denied('key_expired', 'key') end

local used = ''
if key[4] and key[4] ~= '' then
  local span = period(key[5], now)
  used = redis.call('HGET', budget_key(S, ARGV[2], key[6] or ARGV[3], span), 'used') or '0'
end
return { payer[1], payer[2] or '0', payer[3] or '0', payer[4] or '0', used, payer[5] or '0', payer[6] or '0', payer[7] or '0',
  payer[8] or '0' }
