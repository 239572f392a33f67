"""The rollout worker's loop.

Consumes   tickets, several at a time.
Produces   one rollout per ticket: n samples with the sampler's log-probs, the reference's, and scores.
Waits for  tickets; then, per ticket, for a policy server that holds the wanted weights, and for the scorers.
Unblocked  by the learner, who issues tickets and publishes weights; by replicas that come back.

A worker keeps nothing. If it dies, others claim its tickets after queue.claim_seconds; if it is told to stop, it
hands them back. A ticket's own errors are counted; a server that is away is waited for, however long it takes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import cast

from lodestar import metrics
from lodestar.errors import LodestarError, QueueUnavailable
from lodestar.queue.port import Claim, WorkerQueue
from lodestar.records import Rollout, Ticket
from lodestar_services.rollout.calls import ModelCalls, samples

log = logging.getLogger(__name__)

TAKE_SECONDS = 0.5
"""Longest wait for tickets, or for a place to put one, before looking whether to stop."""


class RolloutWorker:
    """``await RolloutWorker(queue, calls, name="rollout-0", in_flight=64, heartbeat_seconds=2).work(stopping)``."""

    def __init__(
        self, queue: WorkerQueue, calls: ModelCalls, *, name: str, in_flight: int, heartbeat_seconds: float
    ) -> None:
        self._queue = queue
        self._calls = calls
        self._name = name
        self._in_flight = in_flight
        self._heartbeat_seconds = heartbeat_seconds
        self._work: dict[asyncio.Task[None], Claim] = {}

    async def work(self, stopping: asyncio.Event) -> None:
        """Takes tickets until told to stop, then hands back what is not finished.

        Raises:
            ExceptionGroup: of QueueUnavailable when Redis stayed away, or of a defect of ours.
        """
        async with asyncio.TaskGroup() as group:
            heart = group.create_task(self._keep_claims())
            while not stopping.is_set():
                for claim in await self._take():
                    self._work[group.create_task(self._roll_out(claim))] = claim
            for task in [heart, *self._work]:
                task.cancel()
        for claim in self._work.values():
            await self._queue.release(claim)
            metrics.ROLLOUTS.labels("released").inc()

    async def _take(self) -> list[Claim]:
        """As many tickets as there is room for."""
        room = self._in_flight - len(self._work)
        if room:
            return await self._queue.take(room, TAKE_SECONDS)
        await asyncio.wait(self._work, timeout=TAKE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return []

    async def _roll_out(self, claim: Claim) -> None:
        """One ticket, from claim to finish."""
        try:
            rollout = await self._make(claim.ticket)
        except QueueUnavailable:
            raise
        except LodestarError as error:
            log.warning("ticket %s: %s", claim.ticket.id, error)
            await self._queue.fail(claim, f"{error.status}: {error}")
            outcome = "failed"
        else:
            outcome = "finished" if await self._queue.finish(claim, rollout) else "refused"
        metrics.ROLLOUTS.labels(outcome).inc()
        self._work.pop(cast("asyncio.Task[None]", asyncio.current_task()), None)

    async def _make(self, ticket: Ticket) -> Rollout:
        """Generates, then scores and takes reference log-probs side by side."""
        began = time.perf_counter()
        generation = await self._calls.generate(ticket)
        generated = time.perf_counter()
        scores, references = await asyncio.gather(
            self._calls.score(ticket, generation), self._calls.reference(ticket, generation)
        )
        ended = time.perf_counter()
        metrics.ROLLOUT_SECONDS.labels("generate").observe(generated - began)
        metrics.ROLLOUT_SECONDS.labels("score").observe(ended - generated)
        metrics.ROLLOUT_TOKENS.inc(sum(len(completion.token_ids) for completion in generation.completions))
        return Rollout(
            ticket=ticket,
            version=generation.model.version,
            samples=samples(generation, scores, references),
            worker=self._name,
            generate_seconds=generated - began,
            score_seconds=ended - generated,
        )

    async def _keep_claims(self) -> None:
        """Heartbeats; stops the work on tickets that were withdrawn, or that another worker has."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            lost = await self._queue.heartbeat(list(self._work.values()))
            for task in [task for task, claim in self._work.items() if claim in lost]:
                task.cancel()
                del self._work[task]
                metrics.ROLLOUTS.labels("lost").inc()
