"""A real Redis, and both adapters of the queue behind one face."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from lodestar.local.redis_server import RedisServer
from lodestar.queue.memory import MemoryBroker, MemoryLearnerQueue, MemoryWorkerQueue
from lodestar.queue.port import LearnerQueue, WorkerQueue
from lodestar.queue.redis import RedisLearnerQueue, RedisWorkerQueue
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion
from tests.services.queue.servers import PROGRAMS, program

CLAIM_SECONDS = 0.05
_names = itertools.count()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that only need one; every test uses a run name of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis"), append_only=False) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis to kill, with an append-only file."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Bench:
    """One run's queue: the learner's side, as many workers as asked for, and the faults."""

    claim_seconds = CLAIM_SECONDS

    def __init__(self, run: str) -> None:
        self.run = run
        self.workers: list[WorkerQueue] = []

    def learner(self) -> LearnerQueue:
        """Another learner's side on the same queue."""
        raise NotImplementedError

    def worker(self, name: str = "", **options: Any) -> WorkerQueue:
        """A worker whose claims last claim_seconds."""
        queue = self._worker(name or f"worker-{len(self.workers)}", {"claim_seconds": self.claim_seconds, **options})
        self.workers.append(queue)
        return queue

    def _worker(self, name: str, options: dict[str, Any]) -> WorkerQueue:
        raise NotImplementedError

    def lose_everything(self) -> None:
        """The queue's contents disappear."""
        raise NotImplementedError

    async def let_claims_expire(self) -> None:
        """Every claim without a heartbeat becomes free to take."""
        await asyncio.sleep(1.2 * self.claim_seconds)


class MemoryBench(Bench):
    """In one process."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.broker = MemoryBroker()

    def learner(self) -> LearnerQueue:
        return MemoryLearnerQueue(self.broker)

    def _worker(self, name: str, options: dict[str, Any]) -> WorkerQueue:
        return MemoryWorkerQueue(self.broker, self.run, name, **options)

    def lose_everything(self) -> None:
        self.broker.lose_everything()


class RedisBench(Bench):
    """On a real Redis."""

    def __init__(self, run: str, url: str) -> None:
        super().__init__(run)
        self.url = url

    def learner(self) -> LearnerQueue:
        return RedisLearnerQueue(self.url, outage_seconds=5)

    def _worker(self, name: str, options: dict[str, Any]) -> WorkerQueue:
        return RedisWorkerQueue(self.url, self.run, name, **{"outage_seconds": 5, **options})

    def lose_everything(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()


@pytest.fixture(scope="session", params=["memory", *PROGRAMS])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer | None]:
    """Where a queue is kept: in memory (None), or on each of the programs that are here."""
    if request.param == "memory":
        yield None
        return
    folder = tmp_path_factory.mktemp(request.param)
    with RedisServer(folder, append_only=False, executable=program(request.param)) as server:
        yield server


@pytest.fixture
async def bench(kind: RedisServer | None) -> AsyncIterator[Bench]:
    """Both adapters, on every kind of server."""
    run = f"run-{next(_names)}"
    made = MemoryBench(run) if kind is None else RedisBench(run, kind.url)
    yield made
    for worker in made.workers:
        await worker.close()


@pytest.fixture
def learner(bench: Bench) -> Iterator[LearnerQueue]:
    """The learner's side, opened as incarnation "a"."""
    queue = bench.learner()
    queue.open(bench.run, "a")
    yield queue
    queue.close()


def a_ticket(bench: Bench, index: int = 0, *, step: int = 0, attempt: int = 0, incarnation: str = "a") -> Ticket:
    """A ticket of the bench's run."""
    prompt = Prompt(f"prompt-{index}", "what ?", (5, 6, index))
    return Ticket(bench.run, incarnation, step, index, prompt, 2, 2**63 + index, step, 16, 1.0, attempt)


def a_rollout(ticket: Ticket, worker: str = "worker-0", version: WeightVersion | None = None) -> Rollout:
    """What a worker would make of the ticket."""
    sample = Sample(
        token_ids=(7, 8, 1),
        behaviour_logprobs=(-0.5, -0.25, -1.0),
        reference_logprobs=(-0.5, -0.5, -1.5),
        score=1.25,
        finish_reason=FinishReason.EOS,
        text="yes",
        score_standard_deviation=0.5,
        heads={"help": 2.0},
    )
    version = version or WeightVersion(ticket.incarnation, ticket.step, "d1")
    return Rollout(ticket, version, (sample,) * ticket.n, worker, 0.5, 0.25)
