#!lua
-- name: note
-- uses: clock
-- Hands the ledger the row of a request that never had a hold; no money, no sequence number, and none of it when Redis is full.
-- ARGV: payer, row, epoch.
local S = KEYS[1]
redis.call('XADD', S .. ':events', '*', 'k', 'note', 'h', '', 'p', ARGV[1], 'c', '', 'a', '0', 'r', '0',
  'e', ARGV[3], 's', '0', 't', string.format('%d', clock(S)), 'd', ARGV[2])
return 1
