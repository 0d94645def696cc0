#!lua flags=allow-oom
-- name: restore
-- uses: clock, building
-- Payers, keys and budgets of a shard whose holds are counted, as they are to be; nothing of what was there stays.
-- ARGV: epoch, then name (without the tag), forget_ms ('' = never), number of words, and fields with their values of each hash.
local S, epoch = KEYS[1], ARGV[1]
local _, open, rebuilding, counting = state(S)
if rebuilding ~= epoch or not counting then fenced(S, epoch, open or rebuilding) end
local i = 2
while i <= #ARGV do
  local name, forget_ms, words = S .. ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  redis.call('DEL', name)
  redis.call('HSET', name, unpack(ARGV, i + 3, i + 2 + words))
  if forget_ms ~= '' then redis.call('PEXPIRE', name, forget_ms) end
  i = i + 3 + words
end
return 1
