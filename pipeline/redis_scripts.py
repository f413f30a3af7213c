"""What Redis itself computes for the work queue: scripts that each read and write at one go (Lua; `redis_streams`)."""

# Says "here" on Redis's own clock, so machines may disagree about the time; returns who else did lately.
BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000)
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[2], '+inf')
"""

# How long the oldest entry that no worker was given has waited, in ms; -1 if there is none.
WAITED_MS = """
local last = '0-0'
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups.err and {} or groups) do
  for at = 1, #group, 2 do
    if group[at] == 'last-delivered-id' then last = group[at + 1] end
  end
end
local oldest = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
if not oldest then return -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return math.max(0, now - tonumber(string.match(oldest[1], '^%d+')))
"""

# A region's value is u32 length of the newest KEY, the newest KEY, the KEY before it (or nothing).
STORE_KEYS = """
for at = 2, #ARGV, 2 do
  local held, newest = redis.call('HGET', KEYS[1], ARGV[at]), ''
  if held and #held >= 4 then newest = string.sub(held, 5, 4 + struct.unpack('>I4', held)) end
  if newest ~= ARGV[at + 1] then
    redis.call('HSET', KEYS[1], ARGV[at], struct.pack('>I4', #ARGV[at + 1]) .. ARGV[at + 1] .. newest)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

# MaskOrder.take, on a hash of its fields; an epoch that is over is the field over:<epoch>, with the time it ended.
TAKE_TURN = """
local epoch, sequence, entry, worker, turn_ms, forget_ms = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = redis.call('HMGET', KEYS[1], 'epoch', 'sequence', 'entry', 'worker', 'taken')
if last[1] then
  if last[1] ~= epoch then
    local ended = redis.call('HGET', KEYS[1], 'over:' .. epoch)
    if ended and now - ended < tonumber(forget_ms) then return 0 end
  elseif last[2] == sequence then
    if last[3] ~= entry then return 0 end
  elseif (sequence - last[2]) % 4294967296 >= 2147483648 then
    return 0
  end
  if last[3] and last[4] ~= worker and now - last[5] < tonumber(turn_ms) then return 2 end
  if last[1] ~= epoch then
    local fields = redis.call('HGETALL', KEYS[1])
    for at = 1, #fields, 2 do
      if string.sub(fields[at], 1, 5) == 'over:' and now - fields[at + 1] >= tonumber(forget_ms) then
        redis.call('HDEL', KEYS[1], fields[at])
      end
    end
    redis.call('HSET', KEYS[1], 'over:' .. last[1], now)
  end
end
redis.call('HSET', KEYS[1], 'epoch', epoch, 'sequence', sequence, 'entry', entry, 'worker', worker, 'taken', now)
redis.call('PEXPIRE', KEYS[1], forget_ms)
return 1
"""

# One job of the camera is answered.
END_TURN = "if redis.call('HGET', KEYS[1], 'entry') == ARGV[1] then redis.call('HDEL', KEYS[1], 'entry') end"
