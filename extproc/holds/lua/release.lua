#!lua flags=allow-oom
-- name: release
-- uses: clock, amount, hold, quota, period, budget, correction, ending
-- Ends an open hold by decision of an operator, as an expiry at nothing: all of it goes back, and a settle of whoever still runs is late.
-- ARGV: epoch, hold, row.
local S = KEYS[1]
local epoch, id, row = unpack(ARGV)
local now = clock(S, epoch)
local h = open_hold(S, id)
if h.state == 'ended' then return 'already' end
if h.state ~= 'entry' and h.state ~= 'exact' then return 'unknown' end
finish(S, h, now, 'expire', '0', nil, row, epoch)
return 'ended'
