"""The rollout queue in one process, for tests and notebooks: the same port, the same rules, no Redis.

    broker = MemoryBroker()
    learner, worker = MemoryLearnerQueue(broker), MemoryWorkerQueue(broker, "demo", "worker-0")

The learner's side may live in a thread and the workers' in an event loop. What a run uses is redis/.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from lodestar.errors import FailedPrecondition
from lodestar.queue.port import Claim, DeadLetter, Delivery, Depth
from lodestar.records import Rollout, Ticket

POLL_SECONDS = 0.005


@dataclass(slots=True)
class _Entry:
    """A ticket that is not finished, and who holds it."""

    ticket: Ticket
    issued_at: float
    worker: str | None = None
    last_seen: float = 0.0
    deliveries: int = 0
    attempts: int = 0


@dataclass(slots=True)
class _Streams:
    """One incarnation's contents."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    """Unfinished tickets by receipt, oldest first."""
    done: dict[str, Rollout | DeadLetter] = field(default_factory=dict)
    """What waits to be settled by receipt, oldest first."""
    held: set[str] = field(default_factory=set)
    """Ids of both."""
    duplicates: int = 0


class MemoryBroker:
    """What the queue holds; both sides share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.present: dict[str, str] = {}
        """Incarnation by run."""
        self.streams: dict[tuple[str, str], _Streams] = {}
        """Contents by run and incarnation."""
        self.owners: dict[str, tuple[str, str]] = {}
        """Whose a run is, and where that is, by run."""
        self.restarts = 0
        self._receipts = 0

    def lose_everything(self) -> None:
        """What a Redis without an append-only file does when it restarts."""
        with self.lock:
            self.present.clear()
            self.streams.clear()
            self.restarts += 1

    def open(self, run: str, incarnation: str) -> None:
        """Makes the incarnation's contents and drops those of the run's others."""
        with self.lock:
            self.streams = {key: value for key, value in self.streams.items() if key[0] != run or key[1] == incarnation}
            self.streams.setdefault((run, incarnation), _Streams())
            self.present[run] = incarnation

    def receipt(self) -> str:
        """One that was never used, as a Redis stream entry's id."""
        self._receipts += 1
        return str(self._receipts)


class MemoryLearnerQueue:
    """LearnerQueue on a MemoryBroker."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._run, self._incarnation = "", ""
        self._received: set[str] = set()
        self._restarts = 0
        self._lost = False

    def open(self, run: str, incarnation: str, owner: str = "", where: str = "") -> None:
        """Makes the incarnation's streams, points workers at it and deletes those of dead incarnations.

        Raises:
            FailedPrecondition: a run of that name and another owner is open.
        """
        with self._broker.lock:
            holder = self._broker.owners.get(run)
            if holder is not None and holder[0] != owner:
                raise FailedPrecondition(f"another run named {run} is alive on this queue ({holder[1]})")
            if owner:
                self._broker.owners[run] = (owner, where)
        self._run, self._incarnation = run, incarnation
        self._broker.open(run, incarnation)
        self._restarts = self._broker.restarts
        self._received.clear()

    def issue(self, tickets: Sequence[Ticket]) -> int:
        """Offers tickets to the workers; one that the queue already holds is left alone. Returns how many were new."""
        with self._broker.lock:
            streams = self._streams()
            new = [ticket for ticket in tickets if ticket.id not in streams.held]
            for ticket in new:
                streams.entries[self._broker.receipt()] = _Entry(ticket, self._broker.clock())
                streams.held.add(ticket.id)
            return len(new)

    def receive(self, timeout_seconds: float) -> list[Delivery]:
        """Finished rollouts and dead letters not received before, waiting up to the timeout for the first."""
        with self._broker.changed:
            self._broker.changed.wait_for(lambda: bool(self._fresh()), timeout_seconds)
            fresh = self._fresh()
            self._received.update(delivery.receipt for delivery in fresh)
            return fresh

    def settle(self, receipts: Iterable[str]) -> None:
        """Forgets deliveries and their tickets. Unknown receipts are ignored."""
        with self._broker.lock:
            streams = self._streams()
            for receipt in receipts:
                item = streams.done.pop(receipt, None)
                if item is not None and item.ticket is not None:
                    streams.held.discard(item.ticket.id)

    def withdraw(self, ticket_ids: Iterable[str]) -> None:
        """Takes tickets back that no longer matter; their rollouts will be refused."""
        unwanted = set(ticket_ids)
        with self._broker.lock:
            streams = self._streams()
            for receipt, entry in list(streams.entries.items()):
                if entry.ticket.id in unwanted:
                    del streams.entries[receipt]
                    streams.held.discard(entry.ticket.id)

    def lost_contents(self) -> bool:
        """True once after the broker lost its contents: re-issue what is unsettled."""
        with self._broker.lock:
            self._streams()
            lost = self._lost or self._restarts != self._broker.restarts
            self._lost, self._restarts = False, self._broker.restarts
            return lost

    def depth(self) -> Depth:
        """How full the queue is now."""
        with self._broker.lock:
            streams = self._streams()
            taken = sum(entry.worker is not None for entry in streams.entries.values())
            dead = sum(isinstance(item, DeadLetter) for item in streams.done.values())
            oldest = min((entry.issued_at for entry in streams.entries.values()), default=None)
            return Depth(
                waiting=len(streams.entries) - taken,
                taken=taken,
                finished=len(streams.done) - dead,
                dead=dead,
                oldest_seconds=0.0 if oldest is None else self._broker.clock() - oldest,
                duplicates_refused=streams.duplicates,
            )

    def erase(self) -> None:
        """Deletes everything that the run has in the queue, its name included: the run is over."""
        with self._broker.lock:
            if self._broker.present.get(self._run) == self._incarnation:
                del self._broker.present[self._run]
                self._broker.streams.pop((self._run, self._incarnation), None)
                self._broker.owners.pop(self._run, None)

    def close(self) -> None:
        """Ends our hold on the run's name; the contents stay."""
        with self._broker.lock:
            if self._broker.present.get(self._run) == self._incarnation:
                self._broker.owners.pop(self._run, None)

    def _fresh(self) -> list[Delivery]:
        done = self._streams().done
        return [
            Delivery(receipt, item.ticket.id if item.ticket else "", item)
            for receipt, item in done.items()
            if receipt not in self._received
        ]

    def _streams(self) -> _Streams:
        """This incarnation's contents, made again when they were lost."""
        present = self._broker.present.get(self._run)
        if present is None:
            self._broker.open(self._run, self._incarnation)
            self._received.clear()
            self._lost = True
        elif present != self._incarnation:
            raise FailedPrecondition(f"another learner opened run {self._run} (incarnation {present})")
        return self._broker.streams[self._run, self._incarnation]


class MemoryWorkerQueue:
    """WorkerQueue on a MemoryBroker."""

    def __init__(
        self,
        broker: MemoryBroker,
        run: str,
        worker: str,
        *,
        claim_seconds: float = 10.0,
        max_attempts: int = 3,
        max_deliveries: int = 20,
    ) -> None:
        self._broker = broker
        self._run = run
        self._worker = worker
        self._claim_seconds = claim_seconds
        self._max_attempts = max_attempts
        self._max_deliveries = max_deliveries

    async def take(self, count: int, timeout_seconds: float) -> list[Claim]:
        """Up to count tickets of the present incarnation: abandoned ones first, then new ones; waits for the first."""
        give_up = time.monotonic() + timeout_seconds
        while True:
            claims = self._take(count)
            if claims or time.monotonic() >= give_up:
                return claims
            await asyncio.sleep(POLL_SECONDS)

    async def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Keeps claims from being taken over. Returns those that are not this worker's any more: stop their work."""
        lost = []
        with self._broker.lock:
            for claim in claims:
                entry = self._held(claim)
                if entry is None:
                    lost.append(claim)
                else:
                    entry.last_seen = self._broker.clock()
        return lost

    async def finish(self, claim: Claim, rollout: Rollout) -> bool:
        """Ends the ticket and keeps the rollout. False when it was finished or withdrawn before."""
        with self._broker.lock:
            streams = self._broker.streams.get((self._run, claim.ticket.incarnation))
            if streams is None:
                return False
            if streams.entries.pop(claim.receipt, None) is None:
                streams.duplicates += 1
                return False
            streams.done[self._broker.receipt()] = rollout
            self._broker.changed.notify_all()
            return True

    async def fail(self, claim: Claim, error: str) -> None:
        """Counts an error of the ticket's own; the last allowed one makes it a dead letter, else it is re-offered."""
        with self._broker.lock:
            entry = self._held(claim)
            if entry is None:
                return
            entry.attempts += 1
            entry.worker = None
            if entry.attempts >= self._max_attempts:
                self._bury(claim, DeadLetter(claim.ticket, error, entry.attempts, self._worker))

    async def release(self, claim: Claim) -> None:
        """Hands a ticket back without counting an attempt: a service was unavailable, or the worker stops."""
        with self._broker.lock:
            entry = self._held(claim)
            if entry is not None:
                entry.worker = None
                entry.deliveries -= 1

    async def close(self) -> None:
        """Nothing to end."""

    def _take(self, count: int) -> list[Claim]:
        with self._broker.lock:
            incarnation = self._broker.present.get(self._run)
            if incarnation is None:
                return []
            now = self._broker.clock()
            free = [
                (receipt, entry)
                for receipt, entry in self._broker.streams[self._run, incarnation].entries.items()
                if entry.worker is None or now - entry.last_seen >= self._claim_seconds
            ]
            free.sort(key=lambda item: item[1].deliveries == 0 and item[1].attempts == 0)
            claims = []
            for receipt, entry in free[:count]:
                entry.worker, entry.last_seen = self._worker, now
                entry.deliveries += 1
                claim = Claim(receipt, entry.ticket, entry.deliveries)
                if entry.deliveries > self._max_deliveries:
                    error = f"delivered {entry.deliveries - 1} times without an end: the ticket may kill its workers"
                    self._bury(claim, DeadLetter(claim.ticket, error, entry.deliveries - 1, self._worker))
                else:
                    claims.append(claim)
            return claims

    def _held(self, claim: Claim) -> _Entry | None:
        streams = self._broker.streams.get((self._run, claim.ticket.incarnation))
        entry = streams.entries.get(claim.receipt) if streams else None
        return entry if entry is not None and entry.worker == self._worker else None

    def _bury(self, claim: Claim, letter: DeadLetter) -> None:
        streams = self._broker.streams[self._run, claim.ticket.incarnation]
        del streams.entries[claim.receipt]
        streams.done[self._broker.receipt()] = letter
        self._broker.changed.notify_all()
