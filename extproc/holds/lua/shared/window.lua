-- Sliding-window counters: this fixed window, plus the share of the one before that has not slid out. Kept as "index:current:previous".
local MINUTE, HOUR = 60000, 3600000

local function window(text, now, width)
  local index = math.floor(now / width)
  local i, current, previous = string.match(text or '', '^(%d+):(%d+):(%d+)$')
  i = tonumber(i or -9)
  if i == index then current, previous = tonumber(current), tonumber(previous)
  elseif i == index - 1 then current, previous = 0, tonumber(current)
  else current, previous = 0, 0 end
  local passed = now - index * width
  local used = current + math.floor(previous * (width - passed) / width)
  return { index = index, width = width, passed = passed, current = current, previous = previous, used = used }
end

local function packed(w, n) return string.format('%d:%d:%d', w.index, w.current + n, w.previous) end

-- Milliseconds until `used` has fallen to `room`; 0 = never.
local function until_used(w, room)
  if room < 0 then return 0 end
  if w.current <= room then
    return math.floor(w.width - (room - w.current + 1) * w.width / w.previous) + 1 - w.passed
  end
  return w.width - w.passed + math.floor(w.width - (room + 1) * w.width / w.current) + 1
end

-- Milliseconds until nothing is counted any more.
local function until_fresh(w, n)
  if w.current + n > 0 then return 2 * w.width - w.passed end
  if w.previous > 0 then return w.width - w.passed end
  return 0
end
