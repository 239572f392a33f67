"""A run's name on a Redis is one run's; what it leaves there, and what others find."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis

from lodestar.errors import FailedPrecondition
from lodestar.local.redis_server import RedisServer
from lodestar.queue.redis import RedisLearnerQueue
from tests.services.queue.conftest import Bench, RedisBench, a_rollout, a_ticket


@pytest.fixture
def client(kind: RedisServer | None) -> Iterator[redis.Redis]:
    if kind is None:
        pytest.skip("a queue in memory has no keys")
    with redis.Redis.from_url(kind.url) as made:
        yield made


def keys_of(client: redis.Redis, run: str) -> list[bytes]:
    return sorted(client.scan_iter(f"lodestar:{{{run}}}*"))


async def test_a_second_run_of_the_name_is_refused_while_the_first_lives(bench: Bench) -> None:
    first, second = bench.learner(), bench.learner()
    first.open(bench.run, "a", owner="one", where="host-1:/runs/demo")
    with pytest.raises(FailedPrecondition, match=rf"another run named {bench.run} is alive .*host-1:/runs/demo"):
        await asyncio.to_thread(second.open, bench.run, "b", "two", "host-2:/runs/demo")
    assert first.issue([a_ticket(bench)]) == 1
    assert not first.lost_contents()
    second.close()
    first.close()


async def test_the_same_run_opens_again_at_once(bench: Bench) -> None:
    first, again = bench.learner(), bench.learner()
    first.open(bench.run, "a", owner="one")
    began = time.monotonic()
    again.open(bench.run, "b", owner="one")
    assert time.monotonic() - began < 1
    assert again.issue([a_ticket(bench, incarnation="b")]) == 1
    first.close()
    again.close()


async def test_a_run_that_died_leaves_its_name_to_the_next(bench: Bench) -> None:
    dead = bench.learner()
    dead.open(bench.run, "a", owner="one")
    dead.close()
    heir = RedisLearnerQueue(bench.url, takeover_seconds=0.5) if isinstance(bench, RedisBench) else bench.learner()
    await asyncio.to_thread(heir.open, bench.run, "b", "two")
    assert heir.issue([a_ticket(bench, incarnation="b")]) == 1
    heir.close()


async def test_while_it_looks_it_says_so_and_can_be_told_to_stop(bench: Bench) -> None:
    if not isinstance(bench, RedisBench):
        pytest.skip("a queue in memory knows at once")
    dead = bench.learner()
    dead.open(bench.run, "a", owner="one", where="host-1:/runs/demo")
    dead.close()
    said: list[str] = []
    heir = RedisLearnerQueue(bench.url, waiting=lambda reason: said.append(reason) or False)
    with pytest.raises(FailedPrecondition, match="told to stop"):
        heir.open(bench.run, "b", owner="two")
    assert "host-1:/runs/demo" in said[0]
    heir.close()


async def test_a_run_that_is_over_leaves_nothing(bench: Bench, client: redis.Redis) -> None:
    old, learner, worker = bench.learner(), bench.learner(), bench.worker(max_attempts=1)
    old.open(bench.run, "dead", owner="one")
    old.issue([a_ticket(bench, incarnation="dead")])
    old.close()
    learner.open(bench.run, "a", owner="one")
    learner.issue([a_ticket(bench, index) for index in range(5)])
    held, finished, bad = await worker.take(3, 0.5)
    await worker.finish(finished, a_rollout(finished.ticket))
    await worker.fail(bad, "bad")
    assert await worker.heartbeat([held]) == []
    assert len(await worker.take(2, 0.1)) == 2
    assert len(keys_of(client, bench.run)) > 8
    learner.erase()
    assert keys_of(client, bench.run) == []
    # Nor does a worker that has not heard of it bring anything back.
    assert await worker.heartbeat([held]) == [held]
    assert not await worker.finish(held, a_rollout(held.ticket))
    await worker.fail(held, "late")
    await worker.release(held)
    assert await worker.take(1, 0.2) == []
    assert keys_of(client, bench.run) == []
    learner.close()


async def test_a_run_that_was_replaced_erases_nothing_of_its_successors(bench: Bench) -> None:
    replaced, successor = bench.learner(), bench.learner()
    replaced.open(bench.run, "a", owner="one")
    successor.open(bench.run, "b", owner="one")
    successor.issue([a_ticket(bench, incarnation="b")])
    replaced.erase()
    assert len(await bench.worker().take(1, 1)) == 1
    replaced.close()
    successor.close()
