#!lua flags=no-writes
-- name: sight
-- uses: clock, hold
-- Which of these holds are still open: hold, checkpoint, cap, row, free tokens held and used; nothing of those that have ended or never were.
-- ARGV: epoch, then holds.
local S = KEYS[1]
local epoch = redis.call('HGET', S .. ':shard', 'epoch')
if epoch ~= ARGV[1] then fenced(S, ARGV[1], epoch) end
local open = {}
for i = 2, #ARGV do
  local hold = redis.call('HMGET', hold_key(S, ARGV[i]), 'state', 'checkpoint', 'cap', 'row', 'free', 'used')
  if hold[1] == 'entry' or hold[1] == 'exact' then
    open[#open + 1] = { ARGV[i], hold[2], hold[3], hold[4], hold[5] or '', hold[6] or '' }
  end
end
return open
