"""What somebody else, or a defect, wrote into the streams: a dead letter that says why, and the run goes on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from lodestar.local.redis_server import RedisServer
from lodestar.queue import wire
from lodestar.queue.port import DeadLetter, LearnerQueue
from lodestar.queue.schema import Keys
from tests.services.queue.conftest import RedisBench, a_rollout, a_ticket

_names = itertools.count()
GARBAGE = {
    "no protobuf": {"id": "0.0.0", "ticket": b"\xff\xff", "rollout": b"\xff\xff", "dead": b"\xff\xff"},
    "nothing at all": {"what": "ever"},
    "an empty message": {"id": "0.0.0", "ticket": b"", "rollout": b"", "dead": b""},
    "bytes that are no text": {b"\xfe": b"\xff", "id": b"\xff\xfe"},
    "an id that is none": {"id": "a b c"},
    "a pickle": {"id": "0.0.0", "ticket": b"\x80\x04cos\nsystem\n.", "rollout": b"\x80\x04cos\nsystem\n."},
}


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as made:
        yield made


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[RedisBench]:
    made = RedisBench(f"bad-entries-{next(_names)}", redis_server.url)
    yield made
    for worker in made.workers:
        await worker.close()


@pytest.mark.parametrize("fields", list(GARBAGE.values()), ids=list(GARBAGE))
async def test_an_entry_of_tickets_that_is_none_goes_to_the_dead_letters(
    bench: RedisBench, learner: LearnerQueue, client: redis.Redis, fields: dict[str, bytes]
) -> None:
    entry = client.xadd(Keys(bench.run, "a").tickets, fields).decode()  # type: ignore[arg-type]
    learner.issue([a_ticket(bench, 1)])
    worker = bench.worker()
    claims = await worker.take(5, 1)
    assert [claim.ticket.index for claim in claims] == [1]
    await worker.finish(claims[0], a_rollout(claims[0].ticket))
    dead, *others = sorted(learner.receive(1), key=lambda delivery: not isinstance(delivery.item, DeadLetter))
    assert isinstance(dead.item, DeadLetter)
    assert f"entry {entry} of lodestar:{{{bench.run}}}:a:tickets" in dead.item.error
    assert len(others) == 1
    learner.settle([delivery.receipt for delivery in (dead, *others)])
    depth = learner.depth()
    assert (depth.waiting, depth.taken, depth.finished, depth.dead) == (0, 0, 0, 0)


@pytest.mark.parametrize("stream", ["rollouts", "dead"])
@pytest.mark.parametrize("fields", list(GARBAGE.values()), ids=list(GARBAGE))
async def test_an_entry_of_what_is_finished_that_is_none_says_so(
    bench: RedisBench, learner: LearnerQueue, client: redis.Redis, fields: dict[str, bytes], stream: str
) -> None:
    if stream == "dead":
        fields = {name: value for name, value in fields.items() if name != "rollout"}
    if stream == "dead" and fields.get("dead") == b"":
        pytest.skip("an empty message is a dead letter without a reason")
    entry = client.xadd(getattr(Keys(bench.run, "a"), stream), fields).decode()  # type: ignore[arg-type]
    (delivery,) = learner.receive(1)
    assert isinstance(delivery.item, DeadLetter)
    assert f"entry {entry} of lodestar:{{{bench.run}}}:a:{stream}" in delivery.item.error
    learner.settle([delivery.receipt])
    assert learner.depth().finished == learner.depth().dead == 0


async def test_anothers_ticket_or_rollout_under_our_id_is_not_taken(
    bench: RedisBench, learner: LearnerQueue, client: redis.Redis
) -> None:
    keys = Keys(bench.run, "a")
    foreign = a_ticket(RedisBench("other", bench.url), 4)
    client.xadd(keys.tickets, {"id": "0.0.0", "ticket": wire.ticket_bytes(a_ticket(bench, 3))})
    client.xadd(keys.tickets, {"id": foreign.id, "ticket": wire.ticket_bytes(foreign)})
    client.xadd(keys.rollouts, {"id": "0.0.0", "rollout": wire.rollout_bytes(a_rollout(a_ticket(bench, 3)))})
    assert await bench.worker().take(5, 0.2) == []
    errors = [delivery.item.error for delivery in learner.receive(1) if isinstance(delivery.item, DeadLetter)]
    assert sum("has the id '0.0.0' and holds ticket 0.3.0" in error for error in errors) == 2
    assert sum("of run 'other'" in error for error in errors) == 1


async def test_a_ticket_that_cannot_be_read_kills_no_worker_by_its_deliveries(
    bench: RedisBench, learner: LearnerQueue, client: redis.Redis
) -> None:
    client.xadd(Keys(bench.run, "a").tickets, {"id": "0.0.0", "ticket": b"\xff\xff"})
    client.xreadgroup("workers", "died-of-it", {Keys(bench.run, "a").tickets: ">"})
    for _ in range(3):
        assert await bench.worker().take(1, 0.2) == []
    (delivery,) = learner.receive(1)
    assert "no lodestar.v1.Ticket" in delivery.item.error  # type: ignore[union-attr]


async def test_a_pointer_that_is_no_text_is_no_incarnation(bench: RedisBench, client: redis.Redis) -> None:
    client.set(f"lodestar:{{{bench.run}}}:incarnation", b"\xff\xfe")
    assert await bench.worker().take(1, 0.2) == []
    client.delete(f"lodestar:{{{bench.run}}}:incarnation")
