"""Failovers by hand and by real Sentinels, and a real Cluster: work goes on wherever the master is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from lodestar.errors import QueueUnavailable
from lodestar.queue.port import LearnerQueue, WorkerQueue
from lodestar.queue.redis import RedisLearnerQueue, RedisWorkerQueue
from lodestar.queue.schema import RunKeys
from tests.services.queue.conftest import Bench, a_rollout, a_ticket
from tests.services.queue.servers import PROGRAMS, Sentinel, Server, free_port, program, until

RUN = "topologies"
TICKETS = 30


QUICK = ("redis-6.2", "valkey-9")
"""The oldest and what we bring along; the others belong to the slow tier."""


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROGRAMS])
def executable(request: pytest.FixtureRequest) -> str:
    return program(request.param)


@pytest.fixture
def pair(executable: str, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A master and its replica."""
    with Server(executable, tmp_path / "one").running() as one, Server(executable, tmp_path / "two").running() as two:
        two.replicates(one)
        yield one, two


async def work_through(learner: LearnerQueue, worker: WorkerQueue, disturb: asyncio.Task[None] | None = None) -> None:
    """Every ticket comes back exactly once, whatever happens meanwhile."""
    bench = Bench(RUN)
    tickets = [a_ticket(bench, index) for index in range(TICKETS)]
    back: list[str] = []
    done = asyncio.Event()

    async def work() -> None:
        while not done.is_set():
            for claim in await worker.take(2, 0.2):
                await asyncio.sleep(0.02)
                await worker.finish(claim, a_rollout(claim.ticket))

    def learn() -> None:
        learner.issue(tickets)
        while len(back) < TICKETS:
            if learner.lost_contents():
                learner.issue([ticket for ticket in tickets if ticket.id not in back])
            for delivery in learner.receive(0.2):
                if delivery.ticket_id not in back:
                    back.append(delivery.ticket_id)
                learner.settle([delivery.receipt])

    working = asyncio.create_task(work())
    try:
        await asyncio.wait_for(asyncio.to_thread(learn), 60)
        if disturb is not None:
            await disturb
    finally:
        done.set()
        await working
    assert sorted(back) == sorted(ticket.id for ticket in tickets)


async def test_a_planned_failover_and_back_costs_a_moment(pair: tuple[Server, Server], executable: str) -> None:
    one, two = pair
    learner, worker = RedisLearnerQueue(one.url, 60), RedisWorkerQueue(one.url, RUN, "w", claim_seconds=1)
    learner.open(RUN, "a")

    async def there_and_back() -> None:
        await asyncio.sleep(0.15)
        for ours, other in ((one, two), (two, one)):
            await asyncio.to_thread(fail_over, ours, other)
            await asyncio.sleep(0.3)

    def fail_over(ours: Server, other: Server) -> None:
        ours.client.execute_command("FAILOVER")
        until(lambda: ours.client.info("replication")["role"] == "slave")
        until(lambda: other.client.info("replication")["role"] == "master")
        until(lambda: ours.client.info("replication")["master_link_status"] == "up")

    await work_through(learner, worker, asyncio.create_task(there_and_back()))
    await worker.close()
    learner.close()


@pytest.fixture
def sentinel(executable: str, pair: tuple[Server, Server], tmp_path: Path) -> Iterator[Sentinel]:
    watcher = Sentinel(executable, tmp_path / "sentinel", pair[0])
    with watcher.running():
        until(lambda: watcher.client.sentinel_slaves("mymaster"))
        yield watcher


async def test_sentinels_lead_to_the_new_master_when_the_old_one_dies(
    pair: tuple[Server, Server], sentinel: Sentinel
) -> None:
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/mymaster/0"  # the first one is away
    learner, worker = RedisLearnerQueue(url, 60), RedisWorkerQueue(url, RUN, "w", claim_seconds=1)
    learner.open(RUN, "a")

    async def die() -> None:
        await asyncio.sleep(0.15)
        pair[0].kill()

    await work_through(learner, worker, asyncio.create_task(die()))
    assert pair[1].client.info("replication")["role"] == "master"
    assert pair[1].client.exists(RunKeys(RUN).pointer)
    await worker.close()
    learner.close()


async def test_sentinels_that_are_told_to_fail_over_are_followed(
    pair: tuple[Server, Server], sentinel: Sentinel
) -> None:
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"
    learner, worker = RedisLearnerQueue(url, 60), RedisWorkerQueue(url, RUN, "w", claim_seconds=1)
    learner.open(RUN, "a")

    async def told() -> None:
        await asyncio.sleep(0.15)
        await asyncio.to_thread(sentinel.client.sentinel_failover, "mymaster")

    await work_through(learner, worker, asyncio.create_task(told()))
    until(lambda: pair[1].client.info("replication")["role"] == "master")
    await worker.close()
    learner.close()


def test_a_service_that_the_sentinels_do_not_know_is_named(sentinel: Sentinel) -> None:
    learner = RedisLearnerQueue(f"redis+sentinel://127.0.0.1:{sentinel.port}/other", 0.3)
    with pytest.raises(QueueUnavailable, match="No master found for 'other'"):
        learner.open(RUN, "a")
    learner.close()


@pytest.fixture
def cluster(executable: str, tmp_path: Path) -> Iterator[list[Server]]:
    """Three masters, a third of the slots each."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                Server(
                    executable, tmp_path / f"node-{index}", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"
                ).running()
            )
            for index in range(3)
        ]
        bounds = [0, 5461, 10923, 16384]
        for node, first, last in zip(nodes, bounds, bounds[1:], strict=False):
            node.client.execute_command("CLUSTER ADDSLOTS", *range(first, last))
        for node in nodes[1:]:
            nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port)
        for node in nodes:
            until(lambda node=node: node.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield nodes


async def test_a_clusters_keys_are_found_whatever_the_runs_name(cluster: list[Server]) -> None:
    url = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster[0].port}"
    holders = set()
    for index in range(4):
        run = f"run-{index}"
        bench = Bench(run)
        learner, worker = RedisLearnerQueue(url, 20), RedisWorkerQueue(url, run, "w", outage_seconds=20)
        learner.open(run, "a", owner="us", where="here")
        assert learner.issue([a_ticket(bench, number) for number in range(3)]) == 3
        assert not learner.lost_contents()
        claims = await worker.take(3, 2)
        assert await worker.heartbeat(claims) == []
        for claim in claims[:2]:
            assert await worker.finish(claim, a_rollout(claim.ticket))
        await worker.fail(claims[2], "bad")
        assert learner.depth().finished == 2
        deliveries = learner.receive(1)
        learner.settle(delivery.receipt for delivery in deliveries)
        holders |= {node.port for node in cluster if _holds(node, RunKeys(run).pointer)}
        learner.withdraw([claims[2].ticket.id])
        learner.erase()
        assert not any(node.client.keys("*") for node in cluster)
        await worker.close()
        learner.close()
    assert len(holders) > 1


async def test_a_slot_that_moves_to_another_node_is_followed(cluster: list[Server]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    learner, worker = RedisLearnerQueue(url, 30), RedisWorkerQueue(url, RUN, "w", outage_seconds=30, claim_seconds=1)
    learner.open(RUN, "a")
    pointer = RunKeys(RUN).pointer
    slot = cluster[0].client.execute_command("CLUSTER KEYSLOT", pointer)
    source = next(node for node in cluster if _holds(node, pointer))
    target = next(node for node in cluster if node is not source)

    def move() -> None:
        """As redis-cli --cluster reshard does it."""
        ids = {node.port: node.client.execute_command("CLUSTER MYID").decode() for node in (source, target)}
        target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source.port])
        source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target.port])
        while keys := source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *cluster):
            node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target.port])

    async def moving() -> None:
        await asyncio.sleep(0.15)
        await asyncio.to_thread(move)

    await work_through(learner, worker, asyncio.create_task(moving()))
    assert _holds(target, pointer)
    await worker.close()
    learner.close()


def test_a_cluster_behind_a_plain_url_is_named_with_the_url_to_write(cluster: list[Server]) -> None:
    elsewhere = next(name for name in map(str, range(100)) if not _serves(cluster[0], RunKeys(name).pointer))
    queue = RedisLearnerQueue(cluster[0].url, 5)
    with pytest.raises(QueueUnavailable, match=r"write redis\+cluster:// for redis://"):
        queue.open(elsewhere, "a")
    queue.close()


def _serves(node: Server, key: str) -> bool:
    try:
        node.client.get(key)
    except redis.RedisError:
        return False
    return True


def _holds(node: Server, key: str) -> bool:
    try:
        return bool(node.client.exists(key))
    except redis.RedisError:
        return False
