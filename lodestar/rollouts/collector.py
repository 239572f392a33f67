"""The learner's end of the rollout queue: orders each step's rollouts and takes in what comes back.

Consumes rollouts and dead letters, produces tickets and ledger entries. It waits for workers; what unblocks it is a
rollout for every place of the step's batch, or the ``watch`` callback giving the step up.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from lodestar import metrics
from lodestar.errors import NonFinite, QueueUnavailable, RunPaused
from lodestar.queue.port import DeadLetter, Delivery, LearnerQueue
from lodestar.records import LedgerEntry, Outcome, Prompt, Rollout, Ticket
from lodestar.rollouts.acceptance import fault_of
from lodestar.rollouts.tickets import TicketSchedule

log = logging.getLogger(__name__)

RECEIVE_SECONDS = 0.25
"""Longest wait between two calls of the watch callback."""
LOOK_SECONDS = 1.0
"""How often the queue's depth and health are looked at."""
SUPERSEDED_LIMIT = 20
"""A place superseded this often means that the policy servers belong to something else."""


@dataclass(slots=True)
class Totals:
    """Tickets by outcome, over the lineage of checkpoints."""

    trained: int = 0
    failed: int = 0
    superseded: int = 0
    duplicates_refused: int = 0


@dataclass(slots=True)
class _Place:
    """One index of a step's batch: its present ticket, and what came back for it."""

    ticket: Ticket
    rollout: Rollout | None = None
    receipt: str = ""


@dataclass(slots=True)
class _Step:
    """A step whose tickets are issued and not settled."""

    places: list[_Place]
    ended: list[LedgerEntry] = field(default_factory=list)
    """Failed and superseded tickets."""
    failed: int = 0
    tolerated: int = 0
    """Failures that a person let pass by resuming the run."""
    last_error: str = ""
    complaint: str = ""
    """Why the run should pause although nothing failed; empty when it should not."""

    @property
    def received(self) -> int:
        return sum(place.rollout is not None for place in self.places)


class Collector:
    """Issues tickets, collects rollouts, settles steps.

    ``issue(step)`` also offers the tickets of the max_staleness steps after it, so never more than
    (max_staleness + 1) × tickets are outstanding: that is the whole of backpressure.

    Everything about a step reaches the ledger in one piece, when :meth:`settle` is called after its training. A
    checkpoint is taken between steps; the tickets of later steps that are under way then belong to an incarnation
    that dies with its learner, and their places are issued again, under the same ids, by the next one. So the
    checkpoint needs no settled ids of half-settled steps: :meth:`state_dict` holds totals alone.
    """

    def __init__(
        self,
        queue: LearnerQueue,
        schedule: TicketSchedule,
        *,
        incarnation: str,
        outcome: Outcome = "trained",
        max_failed_fraction: float = 0.05,
        reconcile_seconds: float = 15.0,
        vocabulary: int | None = None,
    ) -> None:
        """The queue must have been opened for the incarnation. ``outcome``: how a rollout that is settled
        ends; ``vocabulary`` bounds the token ids that are taken."""
        self._queue = queue
        self._schedule = schedule
        self._incarnation = incarnation
        self._outcome: Outcome = outcome
        self._max_failed_fraction = max_failed_fraction
        self._reconcile_seconds = reconcile_seconds
        self._vocabulary = vocabulary
        self._steps: dict[int, _Step] = {}
        self._settled = Totals()
        self._queue_duplicates = 0
        self._last_news = self._next_look = 0.0

    def issue(self, step: int) -> None:
        """Offers the tickets of ``step`` and of the steps that staleness allows to generate meanwhile; repeatable."""
        last = min(step + self._schedule.max_staleness, self._schedule.steps - 1)
        for ahead in range(step, last + 1):
            if ahead not in self._steps:
                tickets = [
                    self._schedule.ticket(self._incarnation, ahead, index) for index in self._schedule.places(ahead)
                ]
                self._steps[ahead] = _Step([_Place(ticket) for ticket in tickets])
                self._offer(tickets)

    def collect(self, step: int, watch: Callable[[int], bool] = lambda _: True) -> list[Rollout] | None:
        """The step's rollouts, ordered by index; None when ``watch`` gave the step up. Issues what is not issued yet.

        ``watch`` is called at least four times a second, with the number of places that have their rollout. It may
        take its time (a pause); False ends the call. What was received is kept, so another call goes on from there.

        Raises:
            RunPaused: too many of the step's tickets failed; the last error is in the message.
            NonFinite: likewise, and the last error was a score or log-prob that is no number.
            QueueUnavailable: Redis stayed away longer than its retry budget.
            FailedPrecondition: another learner opened the run.
        """
        self.issue(step)
        state = self._steps[step]
        self._last_news = time.monotonic()
        while state.received < len(state.places):
            if not watch(state.received):
                return None
            self._look_after_queue()
            for delivery in self._queue.receive(RECEIVE_SECONDS):
                self._last_news = time.monotonic()
                self._take_in(delivery)
            self._pause_if_due(step)
        watch(state.received)
        return [place.rollout for place in state.places if place.rollout is not None]

    def settle(self, step: int) -> list[LedgerEntry]:
        """Ends a step whose rollouts were used: deletes its rollouts from the queue and returns its ledger entries."""
        state = self._steps.pop(step)
        entries = list(state.ended)
        for place in state.places:
            assert place.rollout is not None, f"ticket {place.ticket.id} was not collected"
            entries.append(_entry(place.ticket, self._outcome, place.rollout))
        self._queue.settle(place.receipt for place in state.places)
        self._settled.trained += len(state.places)
        self._settled.failed += state.failed
        self._settled.superseded += len(state.ended) - state.failed
        metrics.TICKETS_SETTLED.labels(self._outcome).inc(len(state.places))
        return sorted(entries, key=lambda entry: [int(part) for part in entry.id.split(".")])

    def withdraw(self) -> None:
        """Takes back every ticket that is still out: workers need not go on. A queue that is away keeps them."""
        try:
            self._queue.withdraw(ticket.id for ticket in self._outstanding())
        except QueueUnavailable as error:
            log.warning("tickets that are out could not be taken back: %s", error)

    def totals(self) -> dict[str, int]:
        """Tickets ``issued`` (those under way too), and by outcome as in Totals, over the lineage of checkpoints."""
        under_way = self._steps.values()
        failed = sum(state.failed for state in under_way)
        totals = asdict(self._settled)
        totals["failed"] += failed
        totals["superseded"] += sum(len(state.ended) for state in under_way) - failed
        issued = totals["trained"] + totals["failed"] + totals["superseded"]
        return {"issued": issued + sum(len(state.places) for state in under_way), **totals}

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint between two steps; see the class's docstring for why this is enough."""
        return asdict(self._settled)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues the totals of a checkpoint."""
        self._settled = Totals(**state)

    def _take_in(self, delivery: Delivery) -> None:
        """Keeps a rollout for its place, or ends its ticket another way."""
        place = self._place_of(delivery)
        if place is None or place.receipt not in ("", delivery.receipt):
            self._refuse(delivery)
        elif place.receipt == delivery.receipt:
            pass  # the queue lost its place and tells us again what we hold
        elif isinstance(delivery.item, DeadLetter):
            self._bury(place, delivery, delivery.item)
        elif fault := fault_of(delivery.item, place.ticket, self._vocabulary, trains=self._outcome == "trained"):
            self._bury(place, delivery, DeadLetter(place.ticket, fault, 1, delivery.item.worker))
        elif self._is_too_stale(delivery.item):
            self._supersede(place, delivery, delivery.item)
        else:
            place.rollout, place.receipt = delivery.item, delivery.receipt
            metrics.ROLLOUT_STALENESS.observe(place.ticket.step - delivery.item.version.step)

    def _place_of(self, delivery: Delivery) -> _Place | None:
        """The place that waits for, or holds, this very ticket."""
        ticket = delivery.item.ticket
        if ticket is not None and ticket.incarnation != self._incarnation:
            return None
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})\.\d{1,9}", delivery.ticket_id)
        state = self._steps.get(int(found[1])) if found else None
        if found is None or state is None or int(found[2]) >= len(state.places):
            return None
        place = state.places[int(found[2])]
        return place if place.ticket.id == delivery.ticket_id else None

    def _refuse(self, delivery: Delivery) -> None:
        if isinstance(delivery.item, DeadLetter):
            log.warning("removed from the queue: %s", delivery.item.error)
        else:
            log.info("refused a second rollout for ticket %s", delivery.ticket_id)
            self._settled.duplicates_refused += 1
            metrics.DUPLICATES_REFUSED.inc()
        self._queue.settle([delivery.receipt])

    def _bury(self, place: _Place, delivery: Delivery, letter: DeadLetter) -> None:
        log.warning("ticket %s failed after %d attempts: %s", place.ticket.id, letter.attempts, letter.error)
        metrics.DEAD_LETTERS.inc()
        state = self._steps[place.ticket.step]
        prompt = self._schedule.reserve(place.ticket.step, state.failed)
        state.failed += 1
        state.last_error = letter.error
        self._replace(place, delivery, "failed", prompt)

    def _supersede(self, place: _Place, delivery: Delivery, rollout: Rollout) -> None:
        ticket, version = place.ticket, rollout.version
        log.info("ticket %s came back from weights %s/%d: too stale", ticket.id, version.incarnation, version.step)
        if ticket.attempt and ticket.attempt % SUPERSEDED_LIMIT == 0:
            self._steps[ticket.step].complaint = (
                f"ticket {ticket.id} was answered again and again by weights that are too old or not this learner's "
                f"(last: incarnation {version.incarnation or 'none'}, step {version.step}; wanted "
                f"{self._incarnation}, step {ticket.min_step} or later); check which learner the policy servers follow"
            )
        self._replace(place, delivery, "superseded", ticket.prompt)

    def _replace(self, place: _Place, delivery: Delivery, outcome: Outcome, prompt: Prompt) -> None:
        """Ends the place's ticket and issues its successor."""
        rollout = delivery.item if isinstance(delivery.item, Rollout) else None
        self._steps[place.ticket.step].ended.append(_entry(place.ticket, outcome, rollout))
        metrics.TICKETS_SETTLED.labels(outcome).inc()
        place.ticket = replace(place.ticket, attempt=place.ticket.attempt + 1, prompt=prompt)
        self._queue.settle([delivery.receipt])
        self._offer([place.ticket])

    def _is_too_stale(self, rollout: Rollout) -> bool:
        """Older than the ticket allows, or another incarnation's; the start model (step 0) belongs to every one."""
        version = rollout.version
        is_ours = version.incarnation == self._incarnation or (not version.incarnation and version.step == 0)
        return not is_ours or version.step < rollout.ticket.min_step

    def _pause_if_due(self, step: int) -> None:
        """Raises once per reason: whoever resumes the run accepts what has failed so far."""
        state = self._steps[step]
        complaint, state.complaint = state.complaint, ""
        if state.failed - state.tolerated > self._max_failed_fraction * len(state.places):
            state.tolerated = state.failed
            complaint = (
                f"{state.failed} of {len(state.places)} tickets of step {step} failed, more than "
                f"ppo.max_failed_fraction {self._max_failed_fraction:g} allows; the last error: {state.last_error}"
            )
        if complaint:
            raise NonFinite(complaint) if state.last_error.startswith(NonFinite.status) else RunPaused(complaint)

    def _look_after_queue(self) -> None:
        """Now and then: exports the depth, and issues again when contents are lost or nothing has come for long."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        lost = self._queue.lost_contents()
        if lost or now - self._last_news > self._reconcile_seconds:
            self._last_news = now
            metrics.RECONCILES.inc()
            again = self._offer(self._outstanding())
            log.warning(
                "%s: %d tickets issued again", "the queue lost its contents" if lost else "nothing settled", again
            )
        self._export_depth()

    def _export_depth(self) -> None:
        depth = self._queue.depth()
        metrics.QUEUE_WAITING.set(depth.waiting)
        metrics.QUEUE_TAKEN.set(depth.taken)
        metrics.QUEUE_FINISHED.set(depth.finished)
        metrics.QUEUE_OLDEST_SECONDS.set(depth.oldest_seconds)
        # The queue's count starts again when it loses its contents.
        new = depth.duplicates_refused - self._queue_duplicates
        new = depth.duplicates_refused if new < 0 else new
        self._queue_duplicates = depth.duplicates_refused
        self._settled.duplicates_refused += new
        metrics.DUPLICATES_REFUSED.inc(new)

    def _outstanding(self) -> list[Ticket]:
        return [place.ticket for state in self._steps.values() for place in state.places if place.rollout is None]

    def _offer(self, tickets: Iterable[Ticket]) -> int:
        new = self._queue.issue(list(tickets))
        metrics.TICKETS_ISSUED.inc(new)
        return new


def _entry(ticket: Ticket, outcome: Outcome, rollout: Rollout | None) -> LedgerEntry:
    return LedgerEntry(ticket.incarnation, ticket.step, ticket.id, rollout.token_hash() if rollout else "", outcome)
