-- Amounts are text: decimal integers without leading zeros. Redis adds them (int64); Lua, whose numbers are doubles, never does.
local function neg(a)
  if a == '0' then return a end
  if string.byte(a) == 45 then return string.sub(a, 2) end
  return '-' .. a
end

local function less(a, b)
  local a_neg, b_neg = string.byte(a) == 45, string.byte(b) == 45
  if a_neg ~= b_neg then return a_neg end
  if a_neg then a, b = string.sub(b, 2), string.sub(a, 2) end
  if #a ~= #b then return #a < #b end
  return a < b
end

local function add(key, field, amount)
  if amount ~= '0' then redis.call('HINCRBY', key, field, amount) end
end

-- field + amount, exactly, leaving the field as it was.
local function sum(key, field, amount)
  add(key, field, amount)
  local total = redis.call('HGET', key, field)
  add(key, field, neg(amount))
  return total
end
