"""The operations, each a Lua script, which Redis carries out alone and with its own clock.

Keys, behind the prefix: `claim:KEY` and `job:ID` are hashes that expire by themselves, but for a claim that keeps a
message; `jobs-of:KEY` are the ids of jobs that point to the claim; `unique:NAME` is the id that holds the name;
`orphans` has the claims that keep a message by the end of their lease; `jobs` and `jobs:TOPIC` have ids by the instant
of their sending, and `expiry` says when they are to leave those; of `changed` people hear of jobs. Milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

_PRELUDE = """
local P = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local orphans, changed = P .. 'orphans', P .. 'changed'

local function claim_of(key) return P .. 'claim:' .. key end
local function job_of(id) return P .. 'job:' .. id end
local function pointing_to(key) return P .. 'jobs-of:' .. key end
local function text(value) return value or '' end
local function whole(number) return string.format('%.0f', number) end
local function listed(topic, id) return #topic .. ':' .. topic .. id end

local function tell(key)
    for _, id in ipairs(redis.call('SMEMBERS', pointing_to(key))) do redis.call('PUBLISH', changed, id) end
end

local function cancelled(key)
    for _, id in ipairs(redis.call('SMEMBERS', pointing_to(key))) do
        if redis.call('HGET', job_of(id), 'cancel') == '1' then return 1 end
    end
    return 0
end

local function point(id, key)
    local before = redis.call('HMGET', job_of(id), 'claim', 'expires')
    if not before[1] then return end
    if before[1] ~= '' and before[1] ~= key then redis.call('SREM', pointing_to(before[1]), id) end
    redis.call('HSET', job_of(id), 'claim', key)
    redis.call('SADD', pointing_to(key), id)
    if redis.call('PTTL', pointing_to(key)) < before[2] - now then
        redis.call('PEXPIREAT', pointing_to(key), before[2])
    end
    if before[1] ~= key then redis.call('PUBLISH', changed, id) end
end

local function in_force(key, token, fence)
    local found = redis.call('HMGET', claim_of(key), 'state', 'token', 'fence')
    return found[1] == 'PROCESSING' and found[2] == token and found[3] == fence
end

local function let_go(key, expires)
    redis.call('HSET', claim_of(key), 'token', '', 'lease', '0')
    redis.call('HDEL', claim_of(key), 'message', 'message_id')
    redis.call('ZREM', orphans, key)
    redis.call('PEXPIREAT', claim_of(key), expires)
end

local function job(id)
    local found = redis.call('HMGET', job_of(id), 'topic', 'sent_at', 'message', 'claim', 'progress', 'cancel',
        'expires')
    if not found[1] then return false end
    table.insert(found, 1, id)
    return found
end
"""

_CLAIM = """
local key, fingerprint, token, lease, ttl, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local message_id, message, replaces = ARGV[7], ARGV[8], ARGV[9]
local name = claim_of(key)
local found = redis.call('HMGET', name, 'state', 'fingerprint', 'fence', 'attempt', 'lease', 'message_id', 'message',
    'expires')
local state, kept = found[1], text(found[7])
if state and found[2] ~= fingerprint then return {'mismatch'} end
if id ~= '' then point(id, key) end
if not state and replaces ~= '' then return {'busy', '0'} end
if state == 'COMPLETED' then return {'completed', unpack(redis.call('HMGET', name, 'result', 'outgoing'))} end
if state == 'FAILED' or state == 'CANCELLED' then return {'failed', redis.call('HGET', name, 'error'), state} end
if state and replaces ~= '' and (kept == '' or found[6] ~= replaces) then return {'busy', '0'} end
if state == 'PROCESSING' and tonumber(found[5]) > now then return {'busy', whole(found[5] - now)} end
if kept ~= '' and replaces == '' then return {'orphan', found[6], kept, found[4]} end
local fence, attempt, ends = (found[3] or 0) + 1, (found[4] or 0) + 1, now + lease
local expires = whole(math.max(found[8] or 0, now + ttl, ends))
redis.call('HSET', name, 'state', 'PROCESSING', 'fingerprint', fingerprint, 'token', token, 'fence', whole(fence),
    'attempt', whole(attempt), 'lease', whole(ends), 'expires', expires)
redis.call('HDEL', name, 'result', 'outgoing', 'error')
if message ~= '' then
    redis.call('HSET', name, 'message_id', message_id, 'message', message)
    redis.call('PERSIST', name)
    redis.call('ZADD', orphans, whole(ends), key)
else
    redis.call('HDEL', name, 'message_id', 'message')
    redis.call('ZREM', orphans, key)
    redis.call('PEXPIREAT', name, expires)
end
tell(key)
return {'taken', whole(fence), whole(attempt), cancelled(key)}
"""

_EXTEND = """
local key, token, fence, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not in_force(key, token, fence) then return -1 end
local name, ends = claim_of(key), now + lease
local expires = whole(math.max(redis.call('HGET', name, 'expires'), ends))
redis.call('HSET', name, 'lease', whole(ends), 'expires', expires)
if redis.call('HEXISTS', name, 'message') == 1 then
    redis.call('ZADD', orphans, whole(ends), key)
else
    redis.call('PEXPIREAT', name, expires)
end
return cancelled(key)
"""

_FINISH = """
local key, token, fence, state, result, failure, outgoing, ttl = unpack(ARGV)
if not in_force(key, token, fence) then return -1 end
local expires = whole(now + ttl)
redis.call('HSET', claim_of(key), 'state', state, 'result', result, 'error', failure, 'outgoing', outgoing,
    'expires', expires)
let_go(key, expires)
tell(key)
return 0
"""

_RELEASE = """
local key, token, fence = ARGV[1], ARGV[2], ARGV[3]
if not in_force(key, token, fence) then return -1 end
redis.call('HSET', claim_of(key), 'state', 'PENDING')
let_go(key, redis.call('HGET', claim_of(key), 'expires'))
tell(key)
return 0
"""

_REOPEN = """
local key = ARGV[1]
local state = redis.call('HGET', claim_of(key), 'state')
if state ~= 'FAILED' and state ~= 'CANCELLED' then return 0 end
redis.call('HSET', claim_of(key), 'state', 'PENDING', 'attempt', '0', 'error', '')
for _, id in ipairs(redis.call('SMEMBERS', pointing_to(key))) do
    if redis.call('EXISTS', job_of(id)) == 1 then redis.call('HSET', job_of(id), 'cancel', '0') end
    redis.call('PUBLISH', changed, id)
end
return 1
"""

_READ = """
local key = ARGV[1]
local found = redis.call('HMGET', claim_of(key), 'state', 'fingerprint', 'attempt', 'lease', 'result', 'error')
return found[1] and found
"""

_ORPHANS = """
local limit, all, wanted, from = tonumber(ARGV[1]), {}, {}, 0
for place = 2, #ARGV do wanted[ARGV[place]] = true end
while true do
    local keys = redis.call('ZRANGEBYSCORE', orphans, '-inf', whole(now), 'LIMIT', from, 1000)
    for _, key in ipairs(keys) do
        if #all == limit then return all end
        if #ARGV == 1 or wanted[string.match(key, '^[^/]*')] then
            local found = redis.call('HMGET', claim_of(key), 'fingerprint', 'message_id', 'message', 'attempt')
            if found[3] then table.insert(all, {key, unpack(found)}) end
        end
    end
    if #keys < 1000 then return all end
    from = from + 1000
end
"""

_ADD = """
local id, topic, sent_at, message, claim, progress, cancel, ttl, unique, unique_for = unpack(ARGV)
local known = job(id)
if known then return known end
if unique ~= '' then
    local name = P .. 'unique:' .. unique
    local holder = redis.call('GET', name)
    local other = holder and job(holder)
    if other then return other end
    if tonumber(unique_for) > 0 then redis.call('SET', name, id, 'PX', unique_for) end
end
local expires = whole(now + ttl)
redis.call('HSET', job_of(id), 'topic', topic, 'sent_at', sent_at, 'message', message, 'claim', '',
    'progress', progress, 'cancel', cancel, 'expires', expires, 'unique', unique)
redis.call('PEXPIREAT', job_of(id), expires)
if claim ~= '' then point(id, claim) end
redis.call('ZADD', P .. 'jobs', sent_at, id)
redis.call('ZADD', P .. 'jobs:' .. topic, sent_at, id)
redis.call('ZADD', P .. 'expiry', expires, listed(topic, id))
return job(id)
"""

_DROP = """
local id = ARGV[1]
local found = redis.call('HMGET', job_of(id), 'topic', 'claim', 'unique')
if not found[1] then return 0 end
local name = P .. 'unique:' .. found[3]
if redis.call('GET', name) == id then redis.call('DEL', name) end
redis.call('DEL', job_of(id))
redis.call('SREM', pointing_to(found[2]), id)
redis.call('ZREM', P .. 'jobs', id)
redis.call('ZREM', P .. 'jobs:' .. found[1], id)
redis.call('ZREM', P .. 'expiry', listed(found[1], id))
redis.call('PUBLISH', changed, id)
return 1
"""

_JOBS = """
local limit, name, all, at = tonumber(ARGV[1]), P .. ARGV[2], {}, 0
while #all < limit do
    local ids = redis.call('ZREVRANGE', name, at, at + limit - 1)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
        local found = job(id)
        if found and #all < limit then table.insert(all, found) end
    end
    at = at + #ids
end
return all
"""

_PROGRESS = """
local id = ARGV[1]
if redis.call('EXISTS', job_of(id)) == 0 then return 0 end
redis.call('HSET', job_of(id), 'progress', ARGV[2])
redis.call('PUBLISH', changed, id)
return 1
"""

_CANCEL = """
local id = ARGV[1]
if redis.call('EXISTS', job_of(id)) == 0 then return false end
redis.call('HSET', job_of(id), 'cancel', '1')
redis.call('PUBLISH', changed, id)
return job(id)
"""

_SWEEP = """
-- A second later: inside a script keys expire by another clock than TIME, which is some microseconds older.
local ended, gone = whole(now - 1000), 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'expiry', '-inf', ended, 'LIMIT', 0, ARGV[1])) do
    local length, rest = string.match(member, '^(%d+):(.*)$')
    local topic, id = string.sub(rest, 1, length), string.sub(rest, length + 1)
    local known = redis.call('HGET', job_of(id), 'topic')
    redis.call('ZREM', P .. 'expiry', member)
    redis.call('ZREM', P .. 'jobs:' .. topic, id)
    if not known then redis.call('ZREM', P .. 'jobs', id) end
    gone = gone + 1
end
return gone
"""


@dataclass(frozen=True, slots=True)
class Scripts:
    """The text of each."""

    claim: str = _CLAIM
    extend: str = _EXTEND
    finish: str = _FINISH
    release: str = _RELEASE
    reopen: str = _REOPEN
    read: str = _READ
    orphans: str = _ORPHANS
    add: str = _ADD
    drop: str = _DROP
    job: str = "return job(ARGV[1])"
    jobs: str = _JOBS
    progress: str = _PROGRESS
    cancel: str = _CANCEL
    sweep: str = _SWEEP


def texts() -> dict[str, str]:
    """By name, complete."""
    return {field.name: _PRELUDE + str(field.default) for field in fields(Scripts)}
