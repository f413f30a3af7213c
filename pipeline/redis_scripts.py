"""What Redis itself computes for the work queue: scripts that each read and write at one go (Lua; `redis_streams`).

A Redis that is full refuses what may take room, such as ZADD and HSET, but only as the first write of a script. Scripts
that make room, since jobs are answered by them, begin with one that takes none.
"""

# Says "here" on Redis's own clock, so machines may disagree about the time; returns who else did lately. Who said so in
# time to come did before the clock was set back, and may be gone.
BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. now + ARGV[2], '+inf')
redis.call('ZADD', KEYS[1], now, ARGV[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[2], '+inf')
"""

# The number of shards that those go by who are here, said anew by each who goes by it; who comes first says it.
AGREE = """
local shards, lasts_ms = unpack(ARGV)
local said = redis.call('GET', KEYS[1])
if said == shards then
  redis.call('PEXPIRE', KEYS[1], lasts_ms)
elseif not said then
  redis.call('SET', KEYS[1], shards, 'PX', lasts_ms)
end
return said or shards
"""

# How long the oldest entry that no worker was given has waited, in ms; -1 if there is none. Where the clock was set
# back entries go on from the latest name there was, and nobody knows how long they wait: a minute, so that others help.
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
local waited = now - string.match(oldest[1], '^%d+')
return waited < -1000 and 60000 or math.max(0, waited)
"""

# Deletes a worker among a stream's consumers, and those that asked for nothing for so long: Redis keeps each for ever.
# One that holds entries stays, since they would go with it.
FORGET_WORKERS = """
local group, worker, idle_ms = unpack(ARGV)
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], group)
for _, fields in ipairs(consumers.err and {} or consumers) do
  local consumer = {}
  for at = 1, #fields, 2 do consumer[fields[at]] = fields[at + 1] end
  if consumer.pending == 0 and (consumer.name == worker or consumer.idle >= tonumber(idle_ms)) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, consumer.name)
  end
end
"""

# Gives a shard to a worker, unless it was taken over lately. The value says when, for how long at least, and by whom.
TAKE_OVER = """
local worker, keep, most, lasts_ms = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since, kept = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+) ')
local age = since and now - since or -1
if age >= 0 and age < tonumber(kept) then return 0 end
if age >= 0 and age < 4 * kept then keep = math.min(2 * kept, most) end
redis.call('SET', KEYS[1], string.format('%.0f %.0f %s', now, keep, worker), 'PX', lasts_ms)
return 1
"""

# Puts KEYs first in the value of their region in a hash, the newest few alone, each after its length (u32); of a
# recording also in lists, one for each region, since what is longer takes long to write anew. The oldest of a list that
# takes more than so many bytes of Redis's memory go.
STORE_KEYS = """
local expire_ms, generations, bytes, few = unpack(ARGV, 1, 4)
local function put_first(list, key)
  local repeated = redis.call('LPOS', list, key)
  redis.call('LPUSH', list, key)
  if repeated then redis.call('LREM', list, -1, key) end
  redis.call('LTRIM', list, 0, generations - 1)
  while redis.call('LLEN', list) > tonumber(few)
      and redis.call('MEMORY', 'USAGE', list, 'SAMPLES', 0) > tonumber(bytes) do
    redis.call('LTRIM', list, 0, -2)
  end
  redis.call('PEXPIRE', list, expire_ms)
end
for at = 5, #ARGV, 2 do
  local held, kept, next = redis.call('HGET', KEYS[1], ARGV[at]) or '', {ARGV[at + 1]}, 1
  while #held >= next + 4 and #kept < math.min(few, generations) do
    local size = struct.unpack('>I4', held, next)
    local key = string.sub(held, next + 4, next + 3 + size)
    if #key == size and key ~= ARGV[at + 1] then kept[#kept + 1] = key end
    next = next + 4 + size
  end
  for number, key in ipairs(kept) do kept[number] = struct.pack('>I4', #key) .. key end
  redis.call('HSET', KEYS[1], ARGV[at], table.concat(kept))
  if KEYS[(at - 1) / 2] then put_first(KEYS[(at - 1) / 2], ARGV[at + 1]) end
end
redis.call('PEXPIRE', KEYS[1], expire_ms)
"""

# Takes note that an epoch is over, and forgets those that ended long ago. What is yet to come was before the clock was
# set back, and counts as long ago.
_END_EPOCH = """
local function is_recent(at, now, limit_ms)
  return now - at >= 0 and now - at < tonumber(limit_ms)
end
local function end_epoch(epoch, now, forget_ms)
  local fields = redis.call('HGETALL', KEYS[1])
  for at = 1, #fields, 2 do
    if string.sub(fields[at], 1, 5) == 'over:'
        and (#fields > 128 or not is_recent(fields[at + 1], now, forget_ms)) then
      redis.call('HDEL', KEYS[1], fields[at])
    end
  end
  redis.call('HSET', KEYS[1], 'over:' .. epoch, now)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# MaskOrder.take, on a hash of its fields; an epoch that is over is the field over:<epoch>, with the time it ended.
TAKE_TURN = (
    _END_EPOCH
    + """
local epoch, sequence, entry, worker, turn_ms, forget_ms = unpack(ARGV)
local last = redis.call('HMGET', KEYS[1], 'epoch', 'sequence', 'entry', 'worker', 'taken')
if last[1] then
  if last[1] ~= epoch then
    local ended = redis.call('HGET', KEYS[1], 'over:' .. epoch)
    if ended and is_recent(ended, now, forget_ms) then return 0 end
  elseif last[2] == sequence then
    if last[3] ~= entry then return 0 end
  elseif (sequence - last[2]) % 4294967296 >= 2147483648 then
    return 0
  end
  if last[3] and last[4] ~= worker and is_recent(last[5], now, turn_ms) then return 2 end
end
redis.call('HDEL', KEYS[1], 'entry')
if last[1] and last[1] ~= epoch then end_epoch(last[1], now, forget_ms) end
redis.call('HSET', KEYS[1], 'epoch', epoch, 'sequence', sequence, 'entry', entry, 'worker', worker, 'taken', now)
redis.call('PEXPIRE', KEYS[1], forget_ms)
return 1
"""
)

# MaskOrder.advance, on the same hash.
ADVANCE = (
    _END_EPOCH
    + """
local epoch, sequence, forget_ms, lasts_ms = unpack(ARGV)
local last = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
if last[1] == epoch then
  local after = (sequence - last[2]) % 4294967296
  if after == 0 or after >= 2147483648 then return end
elseif last[1] and redis.call('HEXISTS', KEYS[1], 'over:' .. epoch) == 1 then
  return
end
redis.call('HDEL', KEYS[1], 'entry')
if last[1] and last[1] ~= epoch then end_epoch(last[1], now, forget_ms) end
redis.call('HSET', KEYS[1], 'epoch', epoch, 'sequence', sequence, 'taken', now)
redis.call('PEXPIRE', KEYS[1], lasts_ms)
"""
)

# One job of the camera is answered.
END_TURN = "if redis.call('HGET', KEYS[1], 'entry') == ARGV[1] then redis.call('HDEL', KEYS[1], 'entry') end"
