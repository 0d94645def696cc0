-- "<run id>.<number>": whoever rebuilds a shard takes the next number.
local function number(epoch) return string.match(epoch, '%.(%d+)$') end

-- now, epoch (while open), rebuilding (while it is built), counting ('1': nobody asserts any more)
local function state(S) return unpack(redis.call('HMGET', S .. ':shard', 'now', 'epoch', 'rebuilding', 'counting')) end
