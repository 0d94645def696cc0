#!lua flags=allow-oom
-- name: begin
-- uses: clock, amount, building
-- Closes a shard and names the epoch that is being built; open holds stay, and so do events that the ledger does not have yet.
-- ARGV: epoch, the ledger's cursor: ids of events to come are above it, even if the stream was lost and the clock is behind.
local S, E = KEYS[1], KEYS[1] .. ':events'
local epoch, cursor = ARGV[1], ARGV[2]

local function last_id()
  if redis.call('EXISTS', E) == 0 then return '0-0' end
  local told = redis.call('XINFO', 'STREAM', E)
  for i = 1, #told, 2 do
    if told[i] == 'last-generated-id' then return told[i + 1] end
  end
end

local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then return less(a_ms, b_ms) end
  return less(a_seq, b_seq)
end

local _, open, rebuilding = state(S)
if rebuilding == epoch then return 0 end
for _, other in ipairs({ open or '.0', rebuilding or '.0' }) do
  if not less(number(other), number(epoch)) then fenced(S, epoch, other) end
end
if before(last_id(), cursor) then -- a stream remembers its last id, even of an entry that was deleted
  redis.call('XADD', E, cursor, 'k', 'mark')
  redis.call('XDEL', E, cursor)
end
redis.call('HDEL', S .. ':shard', 'epoch', 'counting')
redis.call('HSET', S .. ':shard', 'rebuilding', epoch)
redis.call('DEL', S .. ':asserted')
return 1
