"""Whatever happens in whatever order, every ticket ends exactly once: random histories on both adapters.

A history mixes honest work with second finishers, releases, errors, workers and learners that die, stale weights,
claims that expire and queues that lose everything. After it, honest work alone must bring the run to its end, and
the ledger must hold every id of the lineage once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lodestar_services.learner.journal import JsonLines

from lodestar.config import PpoConfig
from lodestar.errors import RunPaused
from lodestar.local.redis_server import RedisServer
from lodestar.queue.memory import MemoryBroker, MemoryLearnerQueue, MemoryWorkerQueue
from lodestar.queue.port import Claim, WorkerQueue
from lodestar.records import Prompt, WeightVersion
from lodestar.rollouts import collector as collector_module
from lodestar.rollouts.collector import Collector
from lodestar.rollouts.ledger import verify_ledger
from lodestar.rollouts.tickets import TicketSchedule
from tests.services.queue.conftest import Bench, RedisBench, a_rollout

STEPS, BATCH, WORKERS = 4, 3, 2
EVENTS = (
    "take", "take", "take", "finish", "finish", "finish", "finish twice", "finish stale", "fail", "release",
    "work", "work", "work", "work", "heartbeat", "die", "expire", "learn", "learn", "learn", "learn",
    "lose everything", "checkpoint", "learner dies", "poison",
)  # fmt: skip
_runs = itertools.count()


@dataclass
class Clock:
    """Time that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class TimedMemoryBench(Bench):
    """In one process, with time that passes when told to."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.clock = Clock()
        self.broker = MemoryBroker(self.clock)

    def learner(self) -> MemoryLearnerQueue:
        return MemoryLearnerQueue(self.broker)

    def _worker(self, name: str, options: dict[str, object]) -> WorkerQueue:
        return MemoryWorkerQueue(self.broker, self.run, name, claim_seconds=self.claim_seconds, max_attempts=2)

    def lose_everything(self) -> None:
        self.broker.lose_everything()

    async def let_claims_expire(self) -> None:
        self.clock.now += 2 * self.claim_seconds


class HastyRedisBench(RedisBench):
    """On a real Redis, with claims that expire at once."""

    claim_seconds = 0.005


class History:
    """A run that things happen to."""

    def __init__(self, bench: Bench, folder: Path, max_staleness: int) -> None:
        self.bench = bench
        self.path = folder / "ledger.jsonl"
        prompts = [Prompt(f"p{i}", "what ?", (i,)) for i in range(9)]
        ppo = PpoConfig(batch=BATCH, steps=STEPS, max_staleness=max_staleness)
        self.schedule = TicketSchedule(prompts, ppo, run=bench.run, seed=1)
        self.workers = [bench.worker(max_attempts=2) for _ in range(WORKERS)]
        self.claims: list[tuple[WorkerQueue, Claim]] = []
        self.incarnations = itertools.count()
        self.checkpointed: tuple[int, int, dict[str, int]] = (0, 0, {})
        self.step = 0
        self.start()

    def start(self) -> None:
        """A learner starts from the checkpoint."""
        self.step, offset, totals = self.checkpointed
        self.incarnation = f"i{next(self.incarnations)}"
        self.ledger = JsonLines(self.path, offset)
        self.queue = self.bench.learner()
        self.queue.open(self.bench.run, self.incarnation)
        self.collector = Collector(
            self.queue, self.schedule, incarnation=self.incarnation, max_failed_fraction=0.5, reconcile_seconds=1e9
        )
        if totals:
            self.collector.load_state_dict(totals)

    async def happen(self, event: str, which: int) -> None:
        """One event; ``which`` chooses the worker or the claim."""
        await cast(Callable[[int], Awaitable[None]], getattr(self, event.replace(" ", "_")))(which)

    async def take(self, which: int) -> None:
        worker = self.workers[which % WORKERS]
        self.claims += [(worker, claim) for claim in await worker.take(2, 0)]

    async def finish(self, which: int, version: WeightVersion | None = None, keep: bool = False) -> None:
        if self.claims:
            worker, claim = self.claims[which % len(self.claims)]
            if not keep:
                self.claims.remove((worker, claim))
            rollout = a_rollout(claim.ticket)
            await worker.finish(claim, rollout if version is None else a_rollout(claim.ticket, version=version))

    async def work(self, which: int) -> None:
        """One worker finishes all it can get."""
        worker = self.workers[which % WORKERS]
        for claim in await worker.take(10, 0):
            await worker.finish(claim, a_rollout(claim.ticket))

    async def finish_twice(self, which: int) -> None:
        await self.finish(which, keep=True)
        await self.finish(which)

    async def finish_stale(self, which: int) -> None:
        await self.finish(which, WeightVersion("dead", 0, ""))

    async def fail(self, which: int) -> None:
        if self.claims:
            worker, claim = self.claims.pop(which % len(self.claims))
            await worker.fail(claim, "bad prompt")

    async def poison(self, which: int) -> None:
        """Every ticket that is free fails for good."""
        for _ in range(2):
            for claim in await self.workers[which % WORKERS].take(10, 0):
                await self.workers[which % WORKERS].fail(claim, "bad prompt")

    async def release(self, which: int) -> None:
        if self.claims:
            worker, claim = self.claims.pop(which % len(self.claims))
            await worker.release(claim)

    async def heartbeat(self, which: int) -> None:
        worker = self.workers[which % WORKERS]
        lost = await worker.heartbeat([claim for holder, claim in self.claims if holder is worker])
        if which % 2:  # a worker may drop what it lost, or go on
            self.claims = [
                (holder, claim) for holder, claim in self.claims if holder is not worker or claim not in lost
            ]

    async def die(self, which: int) -> None:
        worker = self.workers[which % WORKERS]
        self.claims = [(holder, claim) for holder, claim in self.claims if holder is not worker]

    async def expire(self, which: int) -> None:
        await self.bench.let_claims_expire()

    async def lose_everything(self, which: int) -> None:
        self.bench.lose_everything()

    async def learn(self, which: int) -> None:
        """One look at the queue, and a step of training when all is there."""
        if self.step == STEPS:
            return
        looks = iter([True])
        rollouts = None
        with contextlib.suppress(RunPaused):  # a person lets the run go on
            rollouts = self.collector.collect(self.step, lambda _: next(looks, False))
        if rollouts is not None:
            assert {rollout.version.incarnation for rollout in rollouts} == {self.incarnation}
            self.ledger.append(self.collector.settle(self.step))
            self.step += 1

    async def checkpoint(self, which: int) -> None:
        self.checkpointed = self.step, self.ledger.sync(), self.collector.state_dict()

    async def learner_dies(self, which: int) -> None:
        self.ledger.close()
        self.queue.close()
        self.start()

    async def run_to_the_end(self) -> None:
        """Honest work only."""
        for _ in range(200):
            await self.learn(0)
            if self.step == STEPS:
                return
            await self.expire(0)
            for which in range(WORKERS):
                await self.work(which)
        pytest.fail("the run does not end")

    async def close(self) -> None:
        self.ledger.close()
        self.queue.close()
        for worker in self.workers:
            await worker.close()

    def check(self) -> None:
        assert verify_ledger(self.path, tickets=BATCH, steps=STEPS) == []
        totals = self.collector.totals()
        assert totals["trained"] == STEPS * BATCH
        assert totals["issued"] == totals["trained"] + totals["failed"] + totals["superseded"]
        depth = self.queue.depth()
        assert (depth.waiting, depth.taken, depth.finished, depth.dead) == (0, 0, 0, 0)


histories = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), min_size=20, max_size=100)


def live_through(bench: Bench, events: list[tuple[str, int]], max_staleness: int) -> None:
    """The history, then the end of the run, then the checks."""

    async def scenario(folder: Path) -> None:
        history = History(bench, folder, max_staleness)
        try:
            for event, which in events:
                await history.happen(event, which)
            await history.run_to_the_end()
            history.check()
        finally:
            await history.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


@pytest.fixture(autouse=True, scope="module")
def _no_waiting() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collector_module, "RECEIVE_SECONDS", 0.0)
        patch.setattr(collector_module, "LOOK_SECONDS", 0.0)
        yield


def _settings(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_settings(150)
@given(events=histories, max_staleness=st.integers(0, 1))
def test_every_ticket_ends_once_in_memory(events: list[tuple[str, int]], max_staleness: int) -> None:
    live_through(TimedMemoryBench(f"m-{next(_runs)}"), events, max_staleness)


@_settings(40)
@given(events=histories, max_staleness=st.integers(0, 1))
def test_every_ticket_ends_once_on_redis(
    redis_server: RedisServer, events: list[tuple[str, int]], max_staleness: int
) -> None:
    live_through(HastyRedisBench(f"r-{next(_runs)}", redis_server.url), events, max_staleness)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@_settings(10_000)
@given(events=histories, max_staleness=st.integers(0, 1))
def test_ten_thousand_histories_in_memory(events: list[tuple[str, int]], max_staleness: int) -> None:
    live_through(TimedMemoryBench(f"m-{next(_runs)}"), events, max_staleness)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@_settings(500)
@given(events=histories, max_staleness=st.integers(0, 1))
def test_five_hundred_histories_on_redis(
    redis_server: RedisServer, events: list[tuple[str, int]], max_staleness: int
) -> None:
    live_through(HastyRedisBench(f"r-{next(_runs)}", redis_server.url), events, max_staleness)
