"""The rollout queue's two sides, as the learner and the rollout workers see them.

The queue is transport and never the truth: the learner can re-issue everything unsettled at any time, and whatever
arrives twice is refused the second time. Ids of tickets are Ticket.id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lodestar.records import Rollout, Ticket


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A ticket that was given up: its own errors reached the limit, or what the queue holds of it cannot be used."""

    ticket: Ticket | None
    """None when it could not be read."""
    error: str
    attempts: int
    worker: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the learner receives: a rollout or a dead letter, with the receipt that settles it."""

    receipt: str
    ticket_id: str
    """Ticket.id as the queue has it; "" when it has none."""
    item: Rollout | DeadLetter


@dataclass(frozen=True, slots=True)
class Depth:
    """How full the queue is."""

    waiting: int
    """Tickets no worker has taken."""
    taken: int
    """Tickets that workers hold."""
    finished: int
    """Rollouts that the learner has not settled."""
    dead: int
    """Dead letters that the learner has not settled."""
    oldest_seconds: float
    """Age of the oldest unfinished ticket."""
    duplicates_refused: int
    """Second finishers of a ticket since the incarnation began."""


class LearnerQueue(Protocol):
    """The learner's side. Synchronous: the learner's loop owns it.

    Every method raises QueueUnavailable when the queue cannot be reached for as long as it is to be waited for.
    """

    def open(self, run: str, incarnation: str, owner: str = "", where: str = "") -> None:
        """Makes the incarnation's streams, points workers at it and deletes those of dead incarnations.

        ``owner`` is the same for every start of one run, and of no other run; ``where`` tells people whose it is.

        Raises:
            FailedPrecondition: a run of that name and another owner is alive on this queue.
        """

    def issue(self, tickets: Sequence[Ticket]) -> int:
        """Offers tickets to the workers; one that the queue already holds is left alone. Returns how many were new.

        Raises:
            FailedPrecondition: another learner opened the run since.
        """

    def receive(self, timeout_seconds: float) -> list[Delivery]:
        """Finished rollouts and dead letters not received before, waiting up to the timeout for the first.

        Returns nothing, and waits no longer than the timeout, while the queue is away and still waited for. What
        cannot be read arrives as a dead letter that says why. What is not settled arrives again after lost_contents
        was true, with the same receipt.
        """

    def settle(self, receipts: Iterable[str]) -> None:
        """Forgets deliveries and their tickets. Unknown receipts are ignored: the queue may have lost them already."""

    def withdraw(self, ticket_ids: Iterable[str]) -> None:
        """Takes tickets back that no longer matter; their rollouts will be refused."""

    def lost_contents(self) -> bool:
        """True once after the server restarted or lost the incarnation's streams: re-issue what is unsettled.

        Raises:
            FailedPrecondition: another learner opened the run since.
        """

    def depth(self) -> Depth:
        """How full the queue is now."""

    def erase(self) -> None:
        """Deletes everything that the run has in the queue, its name included: the run is over."""

    def close(self) -> None:
        """Ends the connection; the contents stay."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A ticket held by a worker."""

    receipt: str
    ticket: Ticket
    deliveries: int
    """Times this ticket was handed to a worker, this one included."""


class WorkerQueue(Protocol):
    """A rollout worker's side. Asynchronous: a worker holds many tickets at once."""

    async def take(self, count: int, timeout_seconds: float) -> list[Claim]:
        """Up to count tickets of the present incarnation: abandoned ones first, then new ones; waits for the first.

        What is no ticket becomes a dead letter that says why.
        """

    async def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Keeps claims from being taken over. Returns those that are not this worker's any more: stop their work."""

    async def finish(self, claim: Claim, rollout: Rollout) -> bool:
        """Acks the ticket and appends the rollout, atomically. False when it was finished or withdrawn before."""

    async def fail(self, claim: Claim, error: str) -> None:
        """Counts an error of the ticket's own; the last allowed one makes it a dead letter, else it is re-offered."""

    async def release(self, claim: Claim) -> None:
        """Hands a ticket back without counting an attempt: a service was unavailable, or the worker stops."""

    async def close(self) -> None:
        """Ends the connection."""
