-- Whether a field can take so much more without leaving int64.
local function fits(key, field, amount)
  if amount == '0' then return true end
  if type(redis.pcall('HINCRBY', key, field, amount)) == 'table' then return false end
  redis.call('HINCRBY', key, field, neg(amount))
  return true
end

-- An exact hold that was not counted against its key's budget, if that has one, is: in the period in which it was created.
local function count_budget(S, id, payer, key, reserved, created)
  local k = redis.call('HMGET', key_key(S, payer, key), 'budget_nanos', 'budget_period', 'budget_id')
  if not k[1] or k[1] == '' then return end
  local span, forget_ms = period(k[2], tonumber(created))
  local B = budget_key(S, payer, k[3] or key, span)
  if not (fits(B, 'used', reserved) and fits(B, 'held', reserved)) then return end
  add(B, 'used', reserved)
  add(B, 'held', reserved)
  if forget_ms ~= '' then redis.call('PEXPIRE', B, forget_ms) end
  redis.call('HSET', hold_key(S, id), 'period', span, 'budget', k[3] or key)
end
