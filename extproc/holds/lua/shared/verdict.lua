-- Replies of admit and amend, flat: {"granted", hold, spendable, why a shadow request would be denied, window of requests, window of tokens}
-- or {"denied", reason, source, required, spendable, retry_after_ms, window}; a window is limit, remaining, reset_ms (limit -1 = none).
-- Behind them stand the free tokens that were asked about, if there are any.
local SOON_MS = 1000 -- when to ask again for what an unknown other request will give back: a slot, or held money

local function granted_as(hold, tokens, spendable, refused, ...)
  local reply = { 'granted', hold, refused and refused[5] or spendable, refused and refused[2] or '', ... }
  reply[#reply + 1] = tokens
  return reply
end

local function denied(reason, source, required, spendable, retry_ms)
  return { 'denied', reason, source or 'account', required or '0', spendable or '0', retry_ms or 0, -1, 0, 0 }
end

local function denied_by(r, n, spendable)
  return { 'denied', r.reason, r.source, '0', spendable, until_used(r.w, r.limit - n), r.limit, math.max(0, r.limit - r.w.used), until_fresh(r.w, 0) }
end

-- Concurrency: so many are open, so many may be ('' = no limit).
local function denied_slot(source, open, limit, spendable)
  if limit == '' or tonumber(open or '0') < tonumber(limit) then return end
  return denied('concurrent_requests', source, '0', spendable, limit ~= '0' and SOON_MS or 0)
end

-- Money is short: would it be enough if every hold came back? Free tokens that others hold may come back as well.
local function short(P, required, spendable, held)
  local tokens = redis.call('HMGET', P, 'held_input', 'held_output')
  local is_gone = (tokens[1] or '0') == '0' and (tokens[2] or '0') == '0'
  if is_gone and less(sum(P, 'spendable', held), required) then return denied('insufficient', 'account', required, spendable, 0) end
  return denied('held', 'account', required, spendable, SOON_MS)
end

-- What a key's budget still has.
local function left_of(B, budget)
  local used = redis.call('HGET', B, 'used') or '0'
  return used == '0' and budget or neg(sum(B, 'used', neg(budget)))
end
