#!lua
-- name: install
-- uses: clock, hold
-- Creates a payer that Redis has never had; 0 = it is there, nothing was changed.
-- ARGV: epoch, payer, version, total, spendable (= available + credit), credit, then fields and values of its free tokens, if it has any.
clock(KEYS[1], ARGV[1])
local P = payer_key(KEYS[1], ARGV[2])
if redis.call('HEXISTS', P, 'version') == 1 then return 0 end
redis.call('HSET', P, 'version', ARGV[3], 'total', ARGV[4], 'spendable', ARGV[5], 'credit', ARGV[6],
  'held', '0', 'entry_held', '0', 'open', '0', 'frozen', '0', 'frozen_version', '0', unpack(ARGV, 7))
return 1
