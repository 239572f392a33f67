"""What the rollout queue keeps in Redis, and the Lua that changes it. Nothing else writes these keys.

All keys of a run start with ``lodestar:{RUN}`` (the braces keep them in one slot of a Redis Cluster); those of one
learner start go on with ``:INCARNATION``.

    key                     type     written by  holds
    ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
    lodestar:{RUN}
      :incarnation          string   learner     the present incarnation; workers follow it
      :incarnations         set      learner     incarnations whose keys may exist, to delete those that are dead
      :INC:tickets          stream   both        id = Ticket.id, ticket = lodestar.v1.Ticket; group "workers"
      :INC:rollouts         stream   both        id = Ticket.id, rollout = lodestar.v1.Rollout
      :INC:dead             stream   both        id = Ticket.id, dead = lodestar.v1.DeadLetter
      :INC:held             hash     both        Ticket.id → its entry in tickets, or "done" until it is settled
      :INC:attempts         hash     workers     Ticket.id → errors of its own so far
      :INC:duplicates       integer  workers     second finishers

A ticket's life: ISSUE adds it to ``tickets`` and ``held``; XREADGROUP or CLAIM gives it to a worker, who keeps it by
HEARTBEAT; FINISH moves it to ``rollouts``, FAIL offers it again or moves it to ``dead``, RELEASE offers it again;
SETTLE forgets it. An entry leaves ``tickets`` in the script that acknowledges it, so that stream's length is the work
still to do, and nothing is ever trimmed: the learner bounds what it issues.

Every script may be sent twice (a reply can be lost): the second time it changes nothing. They run on Redis ≥ 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "workers"
"""The consumer group of every tickets stream; a consumer is one worker process."""

TICKET_FIELD, ROLLOUT_FIELD, DEAD_FIELD = b"ticket", b"rollout", b"dead"


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Keys of a run, whatever its incarnation."""

    run: str

    @property
    def prefix(self) -> str:
        """What every key of the run starts with."""
        return f"lodestar:{{{self.run}}}"

    @property
    def pointer(self) -> str:
        """The present incarnation."""
        return f"{self.prefix}:incarnation"

    @property
    def known(self) -> str:
        """Every incarnation whose keys may exist."""
        return f"{self.prefix}:incarnations"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one incarnation of a run."""

    run: str
    incarnation: str

    def _key(self, part: str) -> str:
        return f"{RunKeys(self.run).prefix}:{self.incarnation}:{part}"

    @property
    def tickets(self) -> str:
        """Stream of work to do."""
        return self._key("tickets")

    @property
    def rollouts(self) -> str:
        """Stream of finished work."""
        return self._key("rollouts")

    @property
    def dead(self) -> str:
        """Stream of tickets given up."""
        return self._key("dead")

    @property
    def held(self) -> str:
        """Hash of the tickets that the queue knows."""
        return self._key("held")

    @property
    def attempts(self) -> str:
        """Hash of errors counted."""
        return self._key("attempts")

    @property
    def duplicates(self) -> str:
        """Count of second finishers."""
        return self._key("duplicates")


OPEN = """
-- KEYS pointer, known, tickets   ARGV prefix, incarnation, "reopen" or ""
-- Returns the incarnation that is present afterwards: another one than ours when reopening finds that we were replaced.
local present = redis.call('GET', KEYS[1])
if ARGV[3] == 'reopen' and present and present ~= ARGV[2] then return present end
for _, dead in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if dead ~= ARGV[2] then
    for _, part in ipairs({'tickets', 'rollouts', 'dead', 'held', 'attempts', 'duplicates'}) do
      redis.call('UNLINK', ARGV[1] .. ':' .. dead .. ':' .. part)
    end
    redis.call('SREM', KEYS[2], dead)
  end
end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[2])
local made = redis.pcall('XGROUP', 'CREATE', KEYS[3], 'workers', '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
return ARGV[2]
"""

ISSUE = """
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

WITHDRAW = """
-- KEYS tickets, held, attempts   ARGV ticket ids
for _, id in ipairs(ARGV) do
  local entry = redis.call('HGET', KEYS[2], id)
  if entry and entry ~= 'done' then
    redis.call('XACK', KEYS[1], 'workers', entry)
    redis.call('XDEL', KEYS[1], entry)
    redis.call('HDEL', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
  end
end
"""

SETTLE = """
-- KEYS stream (rollouts or dead), held, attempts   ARGV pairs: entry, ticket id
for i = 1, #ARGV, 2 do
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('HDEL', KEYS[2], ARGV[i + 1])
    redis.call('HDEL', KEYS[3], ARGV[i + 1])
  end
end
"""

CLAIM = """
-- KEYS tickets   ARGV consumer, min-idle ms, count
-- Takes over up to count claims that were silent for min-idle. Returns pairs: entry with its fields, deliveries.
local claims, cursor = {}, '0-0'
repeat
  local wanted = tonumber(ARGV[3]) - #claims
  local reply = redis.call('XAUTOCLAIM', KEYS[1], 'workers', ARGV[1], ARGV[2], cursor, 'COUNT', wanted)
  cursor = reply[1]
  for _, entry in ipairs(reply[2]) do
    local pending = entry and redis.call('XPENDING', KEYS[1], 'workers', entry[1], entry[1], 1)[1]
    if pending then claims[#claims + 1] = {entry, pending[4]} end
  end
until cursor == '0-0' or #claims >= tonumber(ARGV[3])
return claims
"""

HEARTBEAT = """
-- KEYS tickets   ARGV consumer, entries
-- Resets the idle time of claims that are still the consumer's, without counting a delivery. Returns the others.
local lost = {}
for i = 2, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], 'workers', ARGV[i], ARGV[i], 1)[1]
  if pending and pending[2] == ARGV[1] then
    redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, ARGV[i], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""

FINISH = """
-- KEYS tickets, rollouts, held, duplicates   ARGV entry, ticket id, bytes
-- Whoever's ack counts writes the rollout, even if its claim was taken over in between. Returns 1, else 0.
if redis.call('XACK', KEYS[1], 'workers', ARGV[1]) == 0 then
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('INCR', KEYS[4]) end
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[1])
redis.call('XADD', KEYS[2], '*', 'id', ARGV[2], 'rollout', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], 'done')
return 1
"""

# Shared by FAIL and RELEASE: hands a claim back so that the next CLAIM takes it at once. XCLAIM's IDLE makes it old
# enough for any min-idle; its RETRYCOUNT keeps or undoes the delivery.
_RETURN_TO_GROUP = """
local pending = redis.call('XPENDING', KEYS[1], 'workers', ARGV[2], ARGV[2], 1)[1]
if not pending or pending[2] ~= ARGV[1] then return 0 end
local function offer_again(deliveries)
  redis.call('XCLAIM', KEYS[1], 'workers', 'released', 0, ARGV[2],
             'IDLE', 86400000, 'RETRYCOUNT', deliveries, 'JUSTID')
end
"""

FAIL = (
    """
-- KEYS tickets, dead, held, attempts   ARGV consumer, entry, ticket id, attempts allowed, dead letter's bytes
-- Does nothing unless the claim is the consumer's. Returns 2 when the ticket died, 1 when it is offered again, else 0.
"""
    + _RETURN_TO_GROUP
    + """
if redis.call('HINCRBY', KEYS[4], ARGV[3], 1) < tonumber(ARGV[4]) then
  offer_again(pending[4])
  return 1
end
redis.call('XACK', KEYS[1], 'workers', ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'id', ARGV[3], 'dead', ARGV[5])
redis.call('HSET', KEYS[3], ARGV[3], 'done')
return 2
"""
)

RELEASE = (
    """
-- KEYS tickets   ARGV consumer, entry
"""
    + _RETURN_TO_GROUP
    + """
offer_again(math.max(pending[4] - 1, 0))
return 1
"""
)
