-- Milliseconds of the shard: Redis's time, but never before what the shard has seen, so that a clock set back expires nothing early.
-- The mark moves in steps of 100 ms: a write less for most calls, and no window or lease is finer.
local function clock(S)
  local t = redis.call('TIME')
  local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
  local seen = tonumber(redis.call('HGET', S .. ':shard', 'now') or '0')
  if seen > now then return seen end
  if now - seen >= 100 then redis.call('HSET', S .. ':shard', 'now', string.format('%d', now)) end
  return now
end
