-- Whether a field can take so much more without leaving int64.
local function fits(key, field, amount)
  if amount == '0' then return true end
  if type(redis.pcall('HINCRBY', key, field, amount)) == 'table' then return false end
  redis.call('HINCRBY', key, field, neg(amount))
  return true
end

-- Whose budget a key uses up, the span that a moment falls into, and how long that is remembered; nothing, if the key has none.
local function budget_of(S, payer, key, at)
  local k = redis.call('HMGET', key_key(S, payer, key), 'budget_nanos', 'budget_period', 'budget_id')
  if k[1] and k[1] ~= '' then return k[3] or key, period(k[2], at) end
end

-- So much more of a budget is used, and held. False: it would leave int64, nothing was changed.
local function use_budget(S, payer, budget, span, forget_ms, used, held)
  local B = budget_key(S, payer, budget, span)
  if not (fits(B, 'used', used) and fits(B, 'held', held)) then return false end
  add(B, 'used', used)
  add(B, 'held', held)
  if forget_ms ~= '' then redis.call('PEXPIRE', B, forget_ms) end
  return true
end

-- An exact hold that was not counted against its key's budget, if that has one, is: in the period in which it was created.
local function count_budget(S, id, payer, key, reserved, created)
  local budget, span, forget_ms = budget_of(S, payer, key, tonumber(created))
  if budget and use_budget(S, payer, budget, span, forget_ms, reserved, reserved) then
    redis.call('HSET', hold_key(S, id), 'period', span, 'budget', budget)
  end
end

-- A charge for which nothing was held of the budget: in the period of that moment.
local function charge_budget(S, payer, key, charge, at)
  if charge == '0' then return end
  local budget, span, forget_ms = budget_of(S, payer, key, at)
  if budget then use_budget(S, payer, budget, span, forget_ms, charge, '0') end
end
