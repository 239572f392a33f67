"""Redis dies under load, and comes back with all, some or none of its contents: the run ends by itself."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lodestar_services.learner.journal import JsonLines
from lodestar_services.rollout.calls import ModelCalls
from lodestar_services.rollout.loop import RolloutWorker

from lodestar.config import PpoConfig
from lodestar.errors import ConfigError, QueueUnavailable
from lodestar.local.redis_server import RedisServer
from lodestar.queue.redis import RedisLearnerQueue, RedisWorkerQueue
from lodestar.records import (
    Completion,
    FinishReason,
    Generation,
    ModelInfo,
    Prompt,
    Score,
    Ticket,
    TokenLogProbs,
    WeightVersion,
)
from lodestar.rollouts.collector import Collector
from lodestar.rollouts.ledger import verify_ledger
from lodestar.rollouts.tickets import TicketSchedule

RUN, BATCH, STEPS = "restarts", 16, 4


class ThoughtfulCalls(ModelCalls):
    """Model services that take a while."""

    def __init__(self) -> None:
        self.tickets: list[str] = []

    async def generate(self, ticket: Ticket) -> Generation:
        self.tickets.append(ticket.id)
        await asyncio.sleep(0.02)
        info = ModelInfo("tiny", WeightVersion(ticket.incarnation, ticket.step, "d"), "tok")
        completion = Completion((ticket.index, 1), "text", FinishReason.EOS, (-1.0, -1.0))
        return Generation(info, len(ticket.prompt.token_ids), (completion,) * ticket.n)

    async def score(self, ticket: Ticket, generation: Generation) -> Sequence[Score]:
        return [Score(0.5, mean=0.5)] * ticket.n

    async def reference(self, ticket: Ticket, generation: Generation) -> Sequence[TokenLogProbs]:
        return [TokenLogProbs((-1.0, -1.0))] * ticket.n


def learn(url: str, path: Path, disturb: Callable[[int, int], None]) -> dict[str, int]:
    """A learner without a model: collects and settles every step, and lets the test look on."""
    queue = RedisLearnerQueue(url)
    queue.open(RUN, "a")
    ppo = PpoConfig(batch=BATCH, steps=STEPS, max_staleness=1)
    prompts = [Prompt(f"p{index}", "what ?", (index,)) for index in range(40)]
    schedule = TicketSchedule(prompts, ppo, run=RUN, seed=0)
    collector = Collector(queue, schedule, incarnation="a", reconcile_seconds=3)
    ledger = JsonLines(path)

    for step in range(STEPS):

        def watch(received: int, step: int = step) -> bool:
            disturb(step, received)
            return True

        assert collector.collect(step, watch) is not None
        ledger.append(collector.settle(step))
    ledger.close()
    queue.close()
    return collector.totals()


async def run_with_workers(url: str, path: Path, disturb: Callable[[int, int], None]) -> dict[str, int]:
    """Two workers and a learner in a thread; all must still be there at the end."""
    stopping = asyncio.Event()
    queues = [RedisWorkerQueue(url, RUN, f"w{i}", claim_seconds=1.0) for i in range(2)]
    workers = [
        asyncio.create_task(
            RolloutWorker(queue, ThoughtfulCalls(), name=f"w{i}", in_flight=3, heartbeat_seconds=0.2).work(stopping)
        )
        for i, queue in enumerate(queues)
    ]
    try:
        return await asyncio.to_thread(learn, url, path, disturb)
    finally:
        stopping.set()
        await asyncio.gather(*workers)
        for queue in queues:
            await queue.close()


def keep_everything(folder: Path) -> None:
    """Kill -9 loses nothing that was written."""


def lose_everything(folder: Path) -> None:
    """As a Redis without an append-only file."""
    for path in folder.rglob("*.aof*"):  # Redis 7 keeps a base and a manifest beside it
        path.unlink()


def lose_the_end(folder: Path) -> None:
    """As a machine that stopped before the last second was fsynced."""
    for path in folder.rglob("*.aof"):
        content = path.read_bytes()
        path.write_bytes(content[: int(0.9 * len(content))])


@pytest.mark.parametrize("lose", [keep_everything, lose_everything, lose_the_end])
async def test_a_redis_that_dies_amid_a_step_costs_nothing_but_time(
    own_redis: RedisServer, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    killed_at: list[tuple[int, int]] = []

    def disturb(step: int, received: int) -> None:
        if step == 1 and 0 < received < BATCH and not killed_at:
            killed_at.append((step, received))
            own_redis.kill()
            lose(own_redis.directory)
            time.sleep(0.3)
            own_redis.start()

    path = tmp_path / "ledger.jsonl"
    totals = await run_with_workers(own_redis.url, path, disturb)
    assert killed_at
    assert verify_ledger(path, tickets=BATCH, steps=STEPS) == []
    assert totals["trained"] == BATCH * STEPS
    assert totals["failed"] == totals["superseded"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lose", [keep_everything, lose_everything, lose_the_end])
async def test_a_redis_that_keeps_dying_does_not_stop_the_run(
    own_redis: RedisServer, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    moments = itertools.count(1)

    def disturb(step: int, received: int) -> None:
        if next(moments) % 5 == 0:
            own_redis.kill()
            lose(own_redis.directory)
            own_redis.start()
            time.sleep(0.5)

    path = tmp_path / "ledger.jsonl"
    await run_with_workers(own_redis.url, path, disturb)
    assert verify_ledger(path, tickets=BATCH, steps=STEPS) == []


async def test_work_is_taken_over_from_a_worker_that_was_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    """The killed worker is one that takes tickets and is never heard of again."""

    async def take_and_die() -> int:
        queue = RedisWorkerQueue(redis_server.url, RUN, "victim", claim_seconds=1.0)
        claims = await queue.take(5, 5.0)
        await queue.close()
        return len(claims)

    victim = asyncio.create_task(take_and_die())
    path = tmp_path / "ledger.jsonl"
    totals = await run_with_workers(redis_server.url, path, lambda *_: None)
    assert await victim > 0
    assert totals["trained"] == BATCH * STEPS
    assert verify_ledger(path, tickets=BATCH, steps=STEPS) == []


def test_an_unreachable_redis_is_named_without_its_password() -> None:
    queue = RedisLearnerQueue("redis://lodestar:hunter2@127.0.0.1:1/0", outage_seconds=0.2)
    with pytest.raises(QueueUnavailable, match=r"redis://lodestar:\*\*\*@127\.0\.0\.1:1/0 did not serve us") as caught:
        queue.open("demo", "a")
    assert "is it running, and is queue.url right?" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_worker_says_the_same_of_an_unreachable_redis() -> None:
    queue = RedisWorkerQueue("redis://127.0.0.1:1/0", "demo", "w", outage_seconds=0.2)
    with pytest.raises(QueueUnavailable, match="did not serve us for 0 s"):
        await queue.take(1, 1.0)
    await queue.close()


def test_a_learner_that_waits_for_rollouts_gives_up_on_redis_after_the_budget(own_redis: RedisServer) -> None:
    queue = RedisLearnerQueue(own_redis.url, outage_seconds=0.5)
    queue.open("demo", "a")
    own_redis.kill()
    began = time.monotonic()
    assert queue.receive(0.1) == []
    assert time.monotonic() - began < 0.4
    assert not queue.lost_contents()
    time.sleep(0.6)
    with pytest.raises(QueueUnavailable, match="did not serve us"):
        queue.receive(0.1)


def test_a_wrong_password_is_said_at_once(own_redis: RedisServer) -> None:
    queue = RedisLearnerQueue(own_redis.url.replace("//", "//nobody:wrong@"), outage_seconds=30)
    with pytest.raises(QueueUnavailable, match=r"refuses us: .*check the user in queue.url and the password"):
        queue.open("demo", "a")


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "redis://127.0.0.1:port", "nonsense"])
async def test_a_url_that_is_none_of_redis_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.url: "):
        RedisLearnerQueue(url)
    with pytest.raises(ConfigError, match=r"queue\.url: "):
        RedisWorkerQueue(url, "demo", "w")
