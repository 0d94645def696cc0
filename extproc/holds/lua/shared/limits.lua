-- Rate limits that are configured, of the account and of the key, each in its own windows (fields rpm, rph, tpm of their hashes).
local function rate(list, unit, reason, source, key, field, text, now, width, limit)
  if limit == '' then return end
  local w = window(text, now, width)
  list[#list + 1] = { unit = unit, reason = reason, source = source, key = key, field = field, limit = tonumber(limit), w = w }
end

-- The first of them that has no room for n more of its unit.
local function exceeded(list, n)
  for _, r in ipairs(list) do
    if r.w.used + n > r.limit then return r end
  end
end

local function count(list, unit, n)
  for _, r in ipairs(list) do
    if r.unit == unit then redis.call('HSET', r.key, r.field, packed(r.w, n)) end
  end
end

-- limit, remaining, reset_ms of the tightest window of a unit, n more counted; limit -1 = there is none.
local function tightest(list, unit, n)
  local best, left = nil, nil
  for _, r in ipairs(list) do
    local remaining = math.max(0, r.limit - r.w.used - n)
    if r.unit == unit and (not best or remaining < left) then best, left = r, remaining end
  end
  if not best then return -1, 0, 0 end
  return best.limit, left, until_fresh(best.w, n)
end
