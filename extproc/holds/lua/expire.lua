#!lua flags=allow-oom
-- name: expire
-- uses: clock, amount, hold, quota, period, budget, correction, ending
-- Ends holds whose lease has run out, at their last checkpoint, unless beats may have been kept from coming.
-- After a pause of the reaper (or a jump of the clock, which looks the same), a new epoch, or a reconnect nothing expires for one lease.
-- ARGV: epoch, lease_ms, pause_ms_max, batch, '1' after a reconnect.
local S = KEYS[1]
local epoch, lease_ms, pause_ms_max, batch, reconnected = unpack(ARGV)
local now = clock(S, epoch)
local shard = redis.call('HMGET', S .. ':shard', 'reaped', 'reaped_epoch', 'quiet')
local quiet = tonumber(shard[3] or '0')
if reconnected == '1' or shard[2] ~= epoch or now - tonumber(shard[1] or '0') > tonumber(pause_ms_max) then
  quiet = now + tonumber(lease_ms)
end
redis.call('HSET', S .. ':shard', 'reaped', string.format('%d', now), 'reaped_epoch', epoch, 'quiet', string.format('%d', quiet))
if now < quiet then return {} end

local ended = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', S .. ':leases', '-inf', string.format('%d', now), 'LIMIT', '0', batch)) do
  local h = open_hold(S, id)
  if h.state == 'entry' or h.state == 'exact' then
    finish(S, h, now, 'expire', h.checkpoint, nil, '', epoch, h.used)
    ended[#ended + 1] = id
  else
    redis.call('ZREM', S .. ':leases', id)
  end
end
return ended
