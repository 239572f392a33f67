"""What the rollout queue keeps in Redis. Nothing but lodestar.queue.scripts and XREADGROUP changes these keys.

All keys of a run start with ``lodestar:{RUN}`` (the braces keep them in one slot of a Redis Cluster); those of one
learner start go on with ``:INCARNATION``.

    key                     type     written by  holds
    ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
    lodestar:{RUN}
      :owner                hash     learner     id and where: whose run this is; beat: grows while its learner lives
      :incarnation          string   learner     the present incarnation; workers follow it
      :incarnations         set      learner     incarnations whose keys may exist, to delete those that are dead
      :INC:tickets          stream   both        id = Ticket.id, ticket = lodestar.v1.Ticket; group "workers"
      :INC:rollouts         stream   both        id = Ticket.id, rollout = lodestar.v1.Rollout
      :INC:dead             stream   both        id = Ticket.id, dead = lodestar.v1.DeadLetter
      :INC:held             hash     both        Ticket.id → its entry in tickets, or "done" until it is settled
      :INC:attempts         hash     workers     Ticket.id → errors of its own so far
      :INC:seen             hash     workers     claimed entry → reading of the clock below at its last heartbeat
      :INC:clock            hash     workers     wall: Redis's time when it was last looked at; now; scan (see below)
      :INC:duplicates       integer  workers     second finishers

A ticket's life: ISSUE adds it to ``tickets`` and ``held``; XREADGROUP or CLAIM gives it to a worker, who keeps it by
HEARTBEAT; FINISH moves it to ``rollouts``, FAIL offers it again or moves it to ``dead``, RELEASE offers it again;
SETTLE forgets it. An entry leaves ``tickets`` in the script that acknowledges it, so that stream's length is the work
still to do, and nothing is ever trimmed: the learner bounds what it issues. ERASE ends the run's stay.

Redis measures how long a claim is silent by its machine's clock, and a clock that is set back keeps a dead worker's
tickets for as long. So ``clock`` counts milliseconds of its own: it goes on by what Redis's clock went on since the
last look, never back, and never by more than half a claim's time at once, so that a jump forward takes no tickets
away from workers who are well.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "workers"
"""The consumer group of every tickets stream; a consumer is one worker process."""

ID_FIELD, TICKET_FIELD, ROLLOUT_FIELD, DEAD_FIELD = b"id", b"ticket", b"rollout", b"dead"


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Keys of a run, whatever its incarnation."""

    run: str

    @property
    def prefix(self) -> str:
        """What every key of the run starts with."""
        return f"lodestar:{{{self.run}}}"

    @property
    def owner(self) -> str:
        """Whose run it is."""
        return f"{self.prefix}:owner"

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
    def seen(self) -> str:
        """Hash of heartbeats."""
        return self._key("seen")

    @property
    def clock(self) -> str:
        """Hash of the clock that heartbeats are read by."""
        return self._key("clock")

    @property
    def duplicates(self) -> str:
        """Count of second finishers."""
        return self._key("duplicates")
