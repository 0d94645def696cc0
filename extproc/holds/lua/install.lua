#!lua
-- name: install
-- uses: hold
-- Creates a payer that Redis has never had; 0 = it is there, nothing was changed.
-- ARGV: payer, version, total, spendable (= available + credit), credit.
local P = payer_key(KEYS[1], ARGV[1])
if redis.call('HEXISTS', P, 'version') == 1 then return 0 end
redis.call('HSET', P, 'version', ARGV[2], 'total', ARGV[3], 'spendable', ARGV[4], 'credit', ARGV[5],
  'held', '0', 'entry_held', '0', 'open', '0', 'frozen', '0', 'frozen_version', '0')
return 1
