#!lua
-- name: note
-- uses: clock
-- Hands the ledger the row of a request that never had a hold; no money, no sequence number, and none of it when Redis is full.
-- While the ledger is away refusals must not push out what earns money: above so many waiting events a row is dropped.
-- ARGV: epoch, payer, row, waiting_max.
local S = KEYS[1]
local now = clock(S, ARGV[1])
if redis.call('XLEN', S .. ':events') >= tonumber(ARGV[4]) then
  return redis.error_reply('FULL the row was dropped: too many events of the shard wait for the ledger')
end
redis.call('XADD', S .. ':events', '*', 'k', 'note', 'h', '', 'p', ARGV[2], 'c', '', 'a', '0', 'r', '0',
  'e', ARGV[1], 's', '0', 't', string.format('%d', now), 'd', ARGV[3])
return 1
