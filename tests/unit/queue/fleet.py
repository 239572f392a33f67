"""What the collector's tests need: prompts, a configuration, and workers that answer at once."""

from __future__ import annotations

import asyncio

from lodestar.config import PpoConfig
from lodestar.queue.memory import MemoryBroker, MemoryLearnerQueue, MemoryWorkerQueue
from lodestar.queue.port import LearnerQueue
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion
from lodestar.rollouts.collector import Collector
from lodestar.rollouts.tickets import TicketSchedule

RUN = "demo"


def prompts(count: int) -> list[Prompt]:
    """``prompt-0`` … with one token each."""
    return [Prompt(f"prompt-{i}", f"what is {i} ?", (i,)) for i in range(count)]


def schedule(
    count: int = 50, *, seed: int = 0, batch: int = 4, steps: int = 10, max_staleness: int = 0
) -> TicketSchedule:
    """Of a small run."""
    return TicketSchedule(
        prompts(count), PpoConfig(batch=batch, steps=steps, max_staleness=max_staleness), run=RUN, seed=seed
    )


def collector(queue: LearnerQueue, order: TicketSchedule, incarnation: str = "a", **options: float) -> Collector:
    """Opens the queue for the incarnation."""
    queue.open(RUN, incarnation)
    return Collector(queue, order, incarnation=incarnation, **options)


def rollout(ticket: Ticket, version: WeightVersion | None = None) -> Rollout:
    """One whose tokens depend on the ticket's seed."""
    tokens = (ticket.seed % 97, ticket.prompt.token_ids[0])
    sample = Sample(tokens, (-1.0, -2.0), (-1.5, -2.5), 0.5, FinishReason.EOS)
    return Rollout(
        ticket, version or WeightVersion(ticket.incarnation, ticket.step, ""), (sample,) * ticket.n, "worker"
    )


class Fleet:
    """A broker, the learner's side, and one worker that a test steers."""

    def __init__(self, max_attempts: int = 1) -> None:
        self.broker = MemoryBroker()
        self.queue = MemoryLearnerQueue(self.broker)
        self.worker = MemoryWorkerQueue(self.broker, RUN, "worker", max_attempts=max_attempts)

    def answer(self, version: WeightVersion | None = None, count: int = 100) -> list[Ticket]:
        """Finishes what is waiting; returns the tickets."""

        async def work() -> list[Ticket]:
            claims = await self.worker.take(count, 0)
            for claim in claims:
                await self.worker.finish(claim, rollout(claim.ticket, version))
            return [claim.ticket for claim in claims]

        return asyncio.run(work())

    def refuse(self, count: int, error: str = "bad prompt") -> list[Ticket]:
        """Fails some of what is waiting for good."""

        async def work() -> list[Ticket]:
            claims = await self.worker.take(count, 0)
            for claim in claims:
                await self.worker.fail(claim, error)
            return [claim.ticket for claim in claims]

        return asyncio.run(work())
