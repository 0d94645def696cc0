-- Tokens were counted at the hold; the difference to the true use goes into the same window, as long as it still counts.
local function correct(key, field, text, now_at, delta)
  local index, current, previous = string.match(text or '', '^(%d+):(%d+):(%d+)$')
  index = tonumber(index)
  if not index or delta == 0 then return end
  current, previous = tonumber(current), tonumber(previous)
  if index == now_at then current = math.max(0, current + delta)
  elseif index == now_at + 1 then previous = math.max(0, previous + delta)
  else return end
  redis.call('HSET', key, field, string.format('%d:%d:%d', index, current, previous))
end
