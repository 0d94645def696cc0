-- What is fenced off says who was refused, by which shard, and what that has instead: its epoch, or the one that is being built.
local function fenced(S, epoch, instead)
  error({ err = 'FENCED ' .. S .. ' is not in the epoch ' .. epoch .. ', but in ' .. (instead or 'none') })
end

-- Milliseconds of the shard: Redis's time, but never before what the shard has seen, so that a clock set back expires nothing early.
-- The mark moves in steps of 100 ms: a write less for most calls, and no window or lease is finer.
local function time(S, seen)
  local t = redis.call('TIME')
  local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
  seen = tonumber(seen or '0')
  if seen > now then return seen end
  if now - seen >= 100 then redis.call('HSET', S .. ':shard', 'now', string.format('%d', now)) end
  return now
end

-- The time, for callers in the epoch of an open shard; all others end here, before anything is written.
local function clock(S, epoch)
  local shard = redis.call('HMGET', S .. ':shard', 'now', 'epoch')
  if shard[2] ~= epoch then fenced(S, epoch, shard[2]) end
  return time(S, shard[1])
end
