-- The budget period that a moment falls into: "all", "2026-01-31" or "2026-01" (UTC; days to civil date after Howard Hinnant,
-- "chrono-Compatible Low-Level Date Algorithms"), and how long its counter must be remembered ("" = for ever): the period and a day.
local DAY_MS = 86400000

local function period(kind, now)
  if kind ~= 'day' and kind ~= 'month' then return 'all', '' end
  local z = math.floor(now / DAY_MS) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  if kind == 'day' then return string.format('%04d-%02d-%02d', year, month, day), string.format('%d', 2 * DAY_MS) end
  return string.format('%04d-%02d', year, month), string.format('%d', 32 * DAY_MS)
end
