#!lua flags=no-writes
-- name: facts
-- uses: hold
-- What a shard has at one moment: itself, open holds with their budgets, events beyond a cursor, and the payers and keys asked for.
-- ARGV: cursor, holds_max, events_max, number of payers, payers, then "payer:key" of every key.
local S = KEYS[1]
local cursor, holds_max, events_max, payers_end = ARGV[1], tonumber(ARGV[2]), ARGV[3], 4 + tonumber(ARGV[4])

local t = redis.call('TIME')
local shard = redis.call('HMGET', S .. ':shard', 'epoch', 'rebuilding', 'seq', 'quiet', 'now')
shard[6] = string.format('%d', tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000))

local HOLD_FIELDS = { 'state', 'owner', 'payer', 'key', 'entry', 'reserved', 'cap', 'checkpoint', 'budget', 'period', 'created', 'free',
  'used' }
local holds, budgets, seen = {}, {}, {}
local leases = redis.call('ZRANGE', S .. ':leases', '0', string.format('%d', holds_max - 1), 'WITHSCORES')
for i = 1, #leases, 2 do
  local h = redis.call('HMGET', hold_key(S, leases[i]), unpack(HOLD_FIELDS))
  holds[#holds + 1] = { leases[i], leases[i + 1], h }
  if h[10] and h[10] ~= '' then
    local B = budget_key(S, h[3], h[9] or h[4], h[10])
    if not seen[B] then
      seen[B] = true
      budgets[#budgets + 1] = { string.sub(B, #S + 9), unpack(redis.call('HMGET', B, 'used', 'held')) }
    end
  end
end

local events = {}
for _, entry in ipairs(redis.call('XRANGE', S .. ':events', '(' .. cursor, '+', 'COUNT', events_max)) do
  local e = {}
  for i = 1, #entry[2], 2 do e[entry[2][i]] = entry[2][i + 1] end
  events[#events + 1] = { entry[1], e.k or '', e.h or '', e.p or '', e.a or '', e.e or '', e.s or '', e.f or '' }
end

local payers, keys = {}, {}
for i = 5, payers_end do
  payers[#payers + 1] = redis.call('HMGET', payer_key(S, ARGV[i]), 'version', 'total', 'spendable', 'credit', 'held', 'entry_held', 'open',
    'total_input', 'total_output', 'free_input', 'free_output', 'held_input', 'held_output')
end
for i = payers_end + 1, #ARGV do keys[#keys + 1] = redis.call('HMGET', S .. ':key:' .. ARGV[i], 'version', 'open') end
return { shard, redis.call('ZCARD', S .. ':leases'), holds, budgets, events, payers, keys }
