"""A Redis that refuses for a while is waited for, on every version; one that refuses for good is said so at once."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from lodestar import metrics
from lodestar.errors import QueueUnavailable
from lodestar.queue.outage import TEMPORARY, error_code
from lodestar.queue.redis import RedisLearnerQueue, RedisWorkerQueue
from tests.services.queue.conftest import Bench, a_rollout, a_ticket
from tests.services.queue.servers import PROGRAMS, Server, program

RUN = "outages"


@pytest.fixture(params=list(PROGRAMS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with Server(program(request.param), tmp_path / "server").running() as running:
        yield running


def full(server: Server) -> None:
    server.client.config_set("maxmemory", 1)


def emptied(server: Server) -> None:
    server.client.config_set("maxmemory", 0)


def replica(server: Server) -> None:
    server.client.replicaof("127.0.0.1", 1)


def master(server: Server) -> None:
    server.client.replicaof("NO", "ONE")


def cut_off(server: Server) -> None:
    server.client.config_set("replica-serve-stale-data", "no")
    replica(server)


def without_replicas(server: Server) -> None:
    server.client.config_set("min-replicas-to-write", 1)


def with_replicas(server: Server) -> None:
    server.client.config_set("min-replicas-to-write", 0)


def crowded(server: Server) -> None:
    server.client.config_set("maxclients", 1)
    server.client.client_kill_filter(_type="normal", skipme=True)


def roomy(server: Server) -> None:
    server.client.config_set("maxclients", 1000)


def without_a_disk(server: Server) -> None:
    """A background save fails, and the server refuses writes from then on."""
    (server.folder / "dump.rdb").mkdir()
    (server.folder / "dump.rdb" / "in the way").touch()
    server.client.config_set("save", "1 1")
    server.client.set("outages-dirty", 1)
    give_up = time.monotonic() + 10
    while server.client.info("persistence")["rdb_last_bgsave_status"] != "err":
        assert time.monotonic() < give_up
        time.sleep(0.05)


def with_a_disk(server: Server) -> None:
    server.client.config_set("save", "")
    server.client.config_set("stop-writes-on-bgsave-error", "no")


SITUATIONS: dict[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "OOM": (full, emptied),
    "READONLY": (replica, master),
    "MASTERDOWN": (cut_off, master),
    "NOREPLICAS": (without_replicas, with_replicas),
    "MISCONF": (without_a_disk, with_a_disk),
    "MAXCLIENTS": (crowded, roomy),
}


@pytest.mark.parametrize("situation", list(SITUATIONS))
async def test_work_stops_and_goes_on_by_itself(server: Server, situation: str) -> None:
    begin, end = SITUATIONS[situation]
    reasons: list[str] = []
    learner = RedisLearnerQueue(server.url, 30, waiting=lambda reason: reasons.append(reason) or True)
    learner.open(RUN, "a")
    worker = RedisWorkerQueue(server.url, RUN, "w", outage_seconds=30)
    bench = Bench(RUN)
    learner.issue([a_ticket(bench, index) for index in range(4)])
    claims = await worker.take(4, 2)
    begin(server)
    try:
        working = [
            asyncio.create_task(worker.finish(claims[0], a_rollout(claims[0].ticket))),
            asyncio.create_task(worker.fail(claims[1], "bad")),
            asyncio.create_task(asyncio.to_thread(learner.issue, [a_ticket(bench, 7)])),
            asyncio.create_task(worker.heartbeat(claims[2:])),
        ]
        await asyncio.sleep(0.4)
        assert not any(task.done() and task.exception() for task in working)
        assert reasons
        if situation not in ("MAXCLIENTS",):  # which ends connections before it says why
            assert situation in reasons[0]
            assert TEMPORARY[situation] in reasons[0]
        assert metrics.QUEUE_AWAY_SECONDS.collect()
    finally:
        end(server)
    finished, _, issued, lost = await asyncio.wait_for(asyncio.gather(*working), 20)
    assert finished
    assert issued == 1
    assert lost == []
    assert reasons[-1] == ""
    assert len(learner.receive(2)) == 1
    assert {claim.ticket.index for _ in range(2) for claim in await worker.take(1, 2)} == {1, 7}
    await worker.close()
    learner.close()


async def test_blocked_reads_survive_a_server_that_becomes_a_replica(server: Server) -> None:
    learner = RedisLearnerQueue(server.url, 20)
    learner.open(RUN, "a")
    worker = RedisWorkerQueue(server.url, RUN, "w", outage_seconds=20)
    taking = asyncio.create_task(worker.take(1, 10))
    receiving = asyncio.create_task(asyncio.to_thread(learner.receive, 1.0))
    await asyncio.sleep(0.3)
    replica(server)
    await asyncio.sleep(0.5)
    assert not taking.done()
    master(server)
    assert await receiving == []
    learner.issue([a_ticket(Bench(RUN))])
    assert len(await asyncio.wait_for(taking, 10)) == 1
    await worker.close()
    learner.close()


def test_a_long_script_of_somebody_else_is_waited_for(server: Server) -> None:
    learner = RedisLearnerQueue(server.url, 20)
    learner.open(RUN, "a")
    server.client.config_set("lua-time-limit", 20)
    with redis.Redis(port=server.port, socket_timeout=20) as other:

        def spin() -> None:
            with pytest.raises(redis.ResponseError) as caught:
                other.eval("while true do end", 0)
            assert error_code(caught.value) == "KILLED"

        spinning = threading.Thread(target=spin)
        spinning.start()
        time.sleep(0.2)
        threading.Timer(0.4, server.client.script_kill).start()
        assert learner.issue([a_ticket(Bench(RUN))]) == 1
        spinning.join()
    learner.close()


def test_the_end_says_why_how_long_and_how_to_go_on(server: Server) -> None:
    learner = RedisLearnerQueue(server.url, 0.3)
    learner.open(RUN, "a")
    full(server)
    with pytest.raises(QueueUnavailable) as caught:
        learner.issue([a_ticket(Bench(RUN))])
    said = str(caught.value)
    assert "did not serve us for 0 s (OOM: it reached maxmemory)" in said
    assert "--resume goes on" in said
    assert "queue.outage_seconds" in said
    emptied(server)
    learner.close()


def test_whoever_waits_can_be_told_to_stop(server: Server) -> None:
    learner = RedisLearnerQueue(server.url, 60, waiting=lambda reason: not reason)
    learner.open(RUN, "a")
    replica(server)
    with pytest.raises(QueueUnavailable, match=r"told to stop while .*READONLY"):
        learner.issue([a_ticket(Bench(RUN))])
    learner.close()


async def test_a_worker_that_is_told_to_stop_does_not_wait_for_redis(server: Server) -> None:
    learner = RedisLearnerQueue(server.url)
    learner.open(RUN, "a")
    worker = RedisWorkerQueue(server.url, RUN, "w")
    learner.issue([a_ticket(Bench(RUN))])
    (claim,) = await worker.take(1, 2)
    server.kill()
    began = time.monotonic()
    assert await worker.take(1, 0.3) == []
    assert time.monotonic() - began < 2
    await worker.release(claim)
    assert time.monotonic() - began < 9
    await worker.close()
    learner.close()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda client: client.acl_setuser("default", enabled=True, nopass=True, commands=["-evalsha", "-eval"]),
         "NOPERM|no permissions.*INFO"),
        (lambda client: client.set("lodestar:{outages}:a:tickets", "x"), "WRONGTYPE.*another program wrote"),
    ],
    ids=["not permitted", "another type"],
)  # fmt: skip
def test_what_waiting_cannot_cure_ends_the_run_with_a_sentence(
    server: Server, spoil: Callable[[redis.Redis], object], reason: str
) -> None:
    learner = RedisLearnerQueue(server.url, 60)
    spoil(server.client)
    began = time.monotonic()
    with pytest.raises(QueueUnavailable, match=f"refuses us: .*(?:{reason})"):
        learner.open(RUN, "a")
    assert time.monotonic() - began < 5
    learner.close()


def test_a_database_that_is_not_there_is_said_at_once(server: Server) -> None:
    learner = RedisLearnerQueue(server.url.replace("/0", "/99"), 60)
    with pytest.raises(QueueUnavailable, match="DB index is out of range; check the number of the database"):
        learner.open(RUN, "a")
    learner.close()


async def test_a_clock_that_is_set_back_keeps_no_dead_workers_tickets(server: Server) -> None:
    """The queue reads Redis's clock; here it is as if that had stood an hour further on at the last look."""
    learner = RedisLearnerQueue(server.url)
    learner.open(RUN, "a")
    learner.issue([a_ticket(Bench(RUN))])
    dead, heir = (RedisWorkerQueue(server.url, RUN, name, claim_seconds=0.4) for name in ("dead", "heir"))
    (claim,) = await dead.take(1, 2)
    assert await dead.heartbeat([claim]) == []
    server.client.hincrby("lodestar:{outages}:a:clock", "wall", 3_600_000)
    taken = await heir.take(1, 5)
    assert [found.ticket.id for found in taken] == [claim.ticket.id]
    await dead.close()
    await heir.close()
    learner.close()


async def test_a_clock_that_jumps_ahead_takes_nothing_from_a_worker_who_is_well(server: Server) -> None:
    learner = RedisLearnerQueue(server.url)
    learner.open(RUN, "a")
    learner.issue([a_ticket(Bench(RUN))])
    well, other = (RedisWorkerQueue(server.url, RUN, name, claim_seconds=2) for name in ("well", "other"))
    (claim,) = await well.take(1, 2)
    assert await well.heartbeat([claim]) == []
    server.client.hincrby("lodestar:{outages}:a:clock", "wall", -3_600_000)
    assert await other.take(1, 0.2) == []
    assert await well.heartbeat([claim]) == []
    await well.close()
    await other.close()
    learner.close()


FAKETIME = next((path for path in (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", os.environ.get("LIBFAKETIME", "")
) if Path(path).is_file()), None)  # fmt: skip


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian's faketime)")
async def test_a_machine_whose_clock_is_set_back_an_hour_loses_no_ticket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "time"
    told.write_text("+0\n")
    assert FAKETIME is not None
    for name, value in {
        "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(told), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with Server(program("redis-6.2"), tmp_path / "server").running() as server:
        monkeypatch.delenv("LD_PRELOAD")
        learner = RedisLearnerQueue(server.url)
        learner.open(RUN, "a")
        learner.issue([a_ticket(Bench(RUN))])
        dead, heir = (RedisWorkerQueue(server.url, RUN, name, claim_seconds=0.4) for name in ("dead", "heir"))
        (claim,) = await dead.take(1, 2)
        assert await dead.heartbeat([claim]) == []
        before = server.client.time()[0]
        told.write_text("-3600\n")
        assert server.client.time()[0] < before - 3000
        taken = await heir.take(1, 5)
        assert [found.ticket.id for found in taken] == [claim.ticket.id]
        await dead.close()
        await heir.close()
        learner.close()
