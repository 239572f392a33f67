"""The Lua that changes what the rollout queue keeps in Redis. Keys and fields are in lodestar.queue.schema.

Every script may be sent twice (a reply can be lost): the second time it changes nothing. They run on Redis ≥ 6.2 and
on Valkey. Each names its keys, which share a slot, so a Cluster's client finds their node.
"""

from __future__ import annotations

import hashlib

_DELETE_INCARNATION = """
local function delete(prefix, incarnation)
  for _, part in ipairs({'tickets', 'rollouts', 'dead', 'held', 'attempts', 'seen', 'clock', 'duplicates'}) do
    redis.call('UNLINK', prefix .. ':' .. incarnation .. ':' .. part)
  end
end
"""

_OPEN = (
    """
-- KEYS pointer, known, tickets, owner   ARGV prefix, incarnation, "reopen" or "", owner's id, where it is, beat
-- Returns {incarnation, owner's id, where, beat}: those of somebody else when the run is not ours. "reopen" leaves a
-- successor's incarnation alone; beat is that of a foreign owner who was watched and found dead, else "".
"""
    + _DELETE_INCARNATION
    + """
local present = redis.call('GET', KEYS[1]) or ''
if ARGV[3] == 'reopen' and present ~= '' and present ~= ARGV[2] then return {present, ARGV[4], '', ''} end
local owner = redis.call('HMGET', KEYS[4], 'id', 'where', 'beat')
local beat = owner[3] or '0'
if owner[1] and owner[1] ~= ARGV[4] and ARGV[6] ~= beat then return {present, owner[1], owner[2] or '', beat} end
for _, dead in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if dead ~= ARGV[2] then
    delete(ARGV[1], dead)
    redis.call('SREM', KEYS[2], dead)
  end
end
redis.call('HSET', KEYS[4], 'id', ARGV[4], 'where', ARGV[5])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[2])
local made = redis.pcall('XGROUP', 'CREATE', KEYS[3], 'workers', '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
return {ARGV[2], ARGV[4], ARGV[5], beat}
"""
)

_BEAT = """
-- KEYS owner   ARGV owner's id
if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then return redis.call('HINCRBY', KEYS[1], 'beat', 1) end
return 0
"""

_ERASE = (
    """
-- KEYS pointer, known, owner   ARGV prefix, incarnation
-- Deletes the run, unless another incarnation is present.
"""
    + _DELETE_INCARNATION
    + """
local present = redis.call('GET', KEYS[1])
if present and present ~= ARGV[2] then return 0 end
for _, incarnation in ipairs(redis.call('SMEMBERS', KEYS[2])) do delete(ARGV[1], incarnation) end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return 1
"""
)

_LOOK = """
-- KEYS pointer, tickets   ARGV incarnation
-- Returns {the server's run_id, 1 when the incarnation's streams are there}.
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then return {server, 0} end
local group = redis.pcall('XPENDING', KEYS[2], 'workers')
if group.err then
  if string.find(group.err, 'NOGROUP') then return {server, 0} end
  return group
end
return {server, 1}
"""

_DEPTH = """
-- KEYS tickets, rollouts, dead, duplicates
-- Returns {tickets, those taken, rollouts, dead letters, age of the oldest ticket in ms, duplicates}, or nothing.
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local group = redis.pcall('XPENDING', KEYS[1], 'workers')
if group.err then
  if string.find(group.err, 'NOGROUP') then return {} end
  return group
end
local oldest, age = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1], 0
if oldest then
  local now = redis.call('TIME')
  age = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(string.match(oldest[1], '^%d+'))
end
return {redis.call('XLEN', KEYS[1]), group[1], redis.call('XLEN', KEYS[2]), redis.call('XLEN', KEYS[3]),
        math.max(age, 0), tonumber(redis.call('GET', KEYS[4]) or 0)}
"""

_ISSUE = """
-- KEYS pointer, tickets, held   ARGV incarnation, then per ticket: id, bytes
-- Returns how many were new, or -1 when the incarnation is not there (contents lost, or another learner took over).
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then return -1 end
local new = 0
for i = 2, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then
    local entry = redis.call('XADD', KEYS[2], '*', 'id', ARGV[i], 'ticket', ARGV[i + 1])
    redis.call('HSET', KEYS[3], ARGV[i], entry)
    new = new + 1
  end
end
return new
"""

_WITHDRAW = """
-- KEYS tickets, held, attempts, seen   ARGV ticket ids
for _, id in ipairs(ARGV) do
  local entry = redis.call('HGET', KEYS[2], id)
  if entry and entry ~= 'done' then
    redis.call('XACK', KEYS[1], 'workers', entry)
    redis.call('XDEL', KEYS[1], entry)
    redis.call('HDEL', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    redis.call('HDEL', KEYS[4], entry)
  end
end
"""

_SETTLE = """
-- KEYS stream (rollouts or dead), held, attempts   ARGV pairs: entry, ticket id
for i = 1, #ARGV, 2 do
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('HDEL', KEYS[2], ARGV[i + 1])
    redis.call('HDEL', KEYS[3], ARGV[i + 1])
  end
end
"""

# Shared by CLAIM and HEARTBEAT: reads the queue's own clock, in ms (see above).
_CLOCK = """
local function read_clock(key, claim)
  local time, kept = redis.call('TIME'), redis.call('HMGET', key, 'wall', 'now')
  local wall = time[1] * 1000 + math.floor(time[2] / 1000)
  local passed = math.min(math.max(wall - tonumber(kept[1] or wall), 0), math.ceil(claim / 2))
  local now = tonumber(kept[2] or 0) + passed
  redis.call('HSET', key, 'wall', string.format('%.0f', wall), 'now', string.format('%.0f', now))
  return now
end
"""

_CLAIM = (
    """
-- KEYS tickets, seen, clock   ARGV consumer, ms without a heartbeat after which a claim is abandoned, count
-- Takes over up to count abandoned claims. Returns pairs: entry with its fields, deliveries. The claims are gone
-- through four times in that time, by whichever worker comes first.
"""
    + _CLOCK
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local claim, wanted, claims, from = tonumber(ARGV[2]), tonumber(ARGV[3]), {}, '-'
local now = read_clock(KEYS[3], claim)
if now < tonumber(redis.call('HGET', KEYS[3], 'scan') or 0) then return claims end
repeat
  local page = redis.call('XPENDING', KEYS[1], 'workers', from, '+', 500)
  for _, pending in ipairs(page) do
    local entry, seen = pending[1], tonumber(redis.call('HGET', KEYS[2], pending[1]) or -1)
    if seen < 0 then
      redis.call('HSET', KEYS[2], entry, string.format('%.0f', now))
    elseif now - seen >= claim or pending[2] == 'released' then
      local taken = redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, entry)[1]
      redis.call('HSET', KEYS[2], entry, string.format('%.0f', now))
      if taken then claims[#claims + 1] = {taken, pending[4] + 1} end
      if #claims == wanted then return claims end
    end
    from = '(' .. entry
  end
until #page < 500
redis.call('HSET', KEYS[3], 'scan', string.format('%.0f', now + math.floor(claim / 4)))
return claims
"""
)

_HEARTBEAT = (
    """
-- KEYS tickets, seen, clock   ARGV consumer, ms as for CLAIM, entries
-- Keeps the claims that are still the consumer's. Returns the others.
"""
    + _CLOCK
    + """
local lost = {}
local now = redis.call('EXISTS', KEYS[1]) == 1 and read_clock(KEYS[3], tonumber(ARGV[2]))
for i = 3, #ARGV do
  local pending = now and redis.call('XPENDING', KEYS[1], 'workers', ARGV[i], ARGV[i], 1)[1]
  if pending and pending[2] == ARGV[1] then
    redis.call('HSET', KEYS[2], ARGV[i], string.format('%.0f', now))
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""
)

_FINISH = """
-- KEYS tickets, rollouts, held, duplicates, seen   ARGV entry, ticket id, bytes
-- Whoever's ack counts writes the rollout, even if its claim was taken over in between. Returns 1, else 0.
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 0 then
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('INCR', KEYS[4]) end
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('XADD', KEYS[2], '*', 'id', ARGV[2], 'rollout', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], 'done')
return 1
"""

# Shared by FAIL and RELEASE: gives a claim to nobody, so that the next CLAIM takes it at once. RETRYCOUNT keeps or
# undoes the delivery.
_RETURN_TO_GROUP = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local pending = redis.call('XPENDING', KEYS[1], 'workers', ARGV[2], ARGV[2], 1)[1]
if not pending or pending[2] ~= ARGV[1] then return 0 end
local function offer_again(deliveries)
  redis.call('XCLAIM', KEYS[1], 'workers', 'released', 0, ARGV[2], 'RETRYCOUNT', deliveries, 'JUSTID')
  redis.call('HSET', KEYS[2], ARGV[2], 0)
  redis.call('HSET', KEYS[3], 'scan', 0)
end
"""

_FAIL = (
    """
-- KEYS tickets, seen, clock, dead, held, attempts
-- ARGV consumer, entry, ticket id, attempts allowed, dead letter's bytes
-- Does nothing unless the claim is the consumer's. Returns 2 when the ticket died, 1 when it is offered again, else 0.
"""
    + _RETURN_TO_GROUP
    + """
if redis.call('HINCRBY', KEYS[6], ARGV[3], 1) < tonumber(ARGV[4]) then
  offer_again(pending[4])
  return 1
end
redis.call('XACK', KEYS[1], 'workers', ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('XADD', KEYS[4], '*', 'id', ARGV[3], 'dead', ARGV[5])
redis.call('HSET', KEYS[5], ARGV[3], 'done')
return 2
"""
)

_RELEASE = (
    """
-- KEYS tickets, seen, clock   ARGV consumer, entry
"""
    + _RETURN_TO_GROUP
    + """
offer_again(math.max(pending[4] - 1, 0))
return 1
"""
)

SCRIPTS = {
    name: (text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    for name, text in {
        "OPEN": _OPEN,
        "BEAT": _BEAT,
        "ERASE": _ERASE,
        "LOOK": _LOOK,
        "DEPTH": _DEPTH,
        "ISSUE": _ISSUE,
        "WITHDRAW": _WITHDRAW,
        "SETTLE": _SETTLE,
        "CLAIM": _CLAIM,
        "HEARTBEAT": _HEARTBEAT,
        "FINISH": _FINISH,
        "FAIL": _FAIL,
        "RELEASE": _RELEASE,
    }.items()
}
"""Text and SHA-1 of each."""
