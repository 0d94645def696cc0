-- The one way in which a hold ends: everything it took goes back but the charge, its lease is dropped, its key becomes a tombstone,
-- the ledger's event is written with the shard's next sequence number. All of it was validated before; nothing here can fail half-way.
local OPEN_FIELDS = { 'state', 'owner', 'payer', 'key', 'entry', 'reserved', 'cap', 'checkpoint', 'tokens', 'minute', 'period', 'row', 'to',
  'sandbox', 'free', 'budget', 'created' }

local MINUTES_A_DAY = 1440

local function open_hold(S, id)
  local v = redis.call('HMGET', hold_key(S, id), unpack(OPEN_FIELDS))
  return { id = id, state = v[1], owner = v[2], payer = v[3], key = v[4], entry = v[5], reserved = v[6], cap = v[7],
    checkpoint = v[8], tokens = v[9], minute = v[10], period = v[11], row = v[12], to = v[13], sandbox = v[14],
    free = v[15], budget = v[16] or v[4], created = v[17], used = v[15] and redis.call('HGET', hold_key(S, id), 'used') }
end

-- `taken` is the charge, or nothing if the ledger is to take it. The budget counts it whoever takes it.
local function give_back(S, h, taken, charge, tokens, used)
  local P, K = payer_key(S, h.payer), key_key(S, h.payer, h.key)
  local payer, key = redis.call('HMGET', P, 'version', 'tpm', 'tpd'), redis.call('HMGET', K, 'version', 'tpm', 'budget_nanos')
  local minute = tonumber(h.minute)
  local delta = tokens and minute and tokens - tonumber(h.tokens) or 0
  if payer[1] then
    if h.state == 'exact' then
      if h.reserved ~= taken then
        add(P, 'spendable', h.reserved)
        add(P, 'spendable', neg(taken))
      end
      add(P, 'held', neg(h.reserved))
      if h.free then
        local Q = quota()
        Q.add(P, 'held', h.free, -1)
        Q.add(P, 'free', h.free)
        Q.add(P, 'free', used, -1)
      end
    else
      add(P, 'entry_held', neg(h.entry))
    end
    redis.call('HINCRBY', P, 'open', -1)
    correct(P, 'tpm', payer[2], minute, delta)
    if h.sandbox and minute then correct(P, 'tpd', payer[3], math.floor(minute / MINUTES_A_DAY), delta) end
  end
  if key[1] then
    redis.call('HINCRBY', K, 'open', -1)
    correct(K, 'tpm', key[2], minute, delta)
  end
  if h.period ~= '' then
    local B = budget_key(S, h.payer, h.budget, h.period)
    add(B, 'used', neg(h.reserved))
    add(B, 'held', neg(h.reserved))
    use_budget(S, h.payer, h.budget, h.period, '', charge, '0')
  elseif key[3] and key[3] ~= '' then
    charge_budget(S, h.payer, h.key, charge, tonumber(h.created))
  end
end

local function tombstone(S, id, owner, kind, charge)
  local H = hold_key(S, id)
  redis.call('DEL', H)
  redis.call('HSET', H, 'state', 'ended', 'owner', owner, 'kind', kind, 'amount', charge)
  redis.call('PEXPIRE', H, TOMBSTONE_MS)
end

-- For the ledger. Number 0: what it says has not passed through the sums of Redis.
local function event(S, h, kind, charge, epoch, seq, at, row, used)
  local E, t = S .. ':events', string.format('%d', at)
  if used and used ~= '' and used ~= NO_TOKENS then
    redis.call('XADD', E, '*', 'f', used, 'k', kind, 'h', h.id, 'p', h.payer, 'c', h.key, 'a', charge, 'r', h.reserved,
      'e', epoch, 's', seq, 't', t, 'd', row)
  else
    redis.call('XADD', E, '*', 'k', kind, 'h', h.id, 'p', h.payer, 'c', h.key, 'a', charge, 'r', h.reserved,
      'e', epoch, 's', seq, 't', t, 'd', row)
  end
end

local function finish(S, h, now, kind, charge, tokens, row, epoch, used)
  -- Above what is reserved: of a trusted account, which did not fit after all, or on credit. The ledger takes what is there.
  local is_late = less(h.reserved, charge)
  give_back(S, h, is_late and '0' or charge, charge, tokens, not is_late and used)
  redis.call('ZREM', S .. ':leases', h.id)
  tombstone(S, h.id, h.owner, kind, charge)
  if kind == 'expire' then -- what a late settle needs to know
    redis.call('HSET', hold_key(S, h.id), 'payer', h.payer, 'key', h.key, 'reserved', h.reserved, 'spent', charge, 'budget', h.budget,
      'period', h.period, 'created', h.created)
    if h.free then redis.call('HSET', hold_key(S, h.id), 'free', h.free, 'used', used or NO_TOKENS) end
  end
  local seq = is_late and 0 or redis.call('HINCRBY', S .. ':shard', 'seq', 1)
  if is_late then h.reserved = '0' end -- nothing of it was for this charge
  event(S, h, kind, charge, epoch, seq, now, row ~= '' and row or h.row, used)
end
