"""Rollouts of 1,000 tokens through Redis, from ticket to settled: rollouts per second and Redis memory for each.

Ours: tickets issued, claimed, finished (ack and append in one script), received, parsed into records and settled; one
worker process, one learner. The peer is what a first version would be: two Redis lists and pickle, BLPOP and RPUSH on
both sides, where a process that dies takes its work with it.

(Not named queue.py: a script's folder comes first on sys.path and would hide the standard library's queue.)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import redis
from harness import alternate, median_ratio, parser, report

from lodestar.local.redis_server import RedisServer
from lodestar.queue import wire
from lodestar.queue.redis import RedisLearnerQueue, RedisWorkerQueue
from lodestar.records import FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion

RUN, PROMPT_TOKENS, TOKENS, IN_FLIGHT = "bench", 200, 1000, 64
TICKETS, RESULTS, END = "peer:tickets", "peer:rollouts", b"end"


def a_ticket(index: int) -> Ticket:
    """One sample of a prompt."""
    prompt = Prompt(f"prompt-{index}", "x" * 4 * PROMPT_TOKENS, tuple(range(1000, 1000 + PROMPT_TOKENS)))
    return Ticket(RUN, "a", 0, index, prompt, 1, index, 0, TOKENS, 1.0)


def a_rollout(ticket: Ticket) -> Rollout:
    """A response of 1,000 tokens with both log-probs."""
    logprobs = tuple(-1.0 - i / TOKENS for i in range(TOKENS))
    tokens = tuple(50_000 + i for i in range(TOKENS))
    sample = Sample(tokens, logprobs, logprobs, 1.5, FinishReason.LENGTH, "x" * 4 * TOKENS)
    return Rollout(ticket, WeightVersion("a", 0, "d" * 64), (sample,), "worker")


def _work(url: str) -> None:
    """Ours: takes and finishes until it is terminated."""

    async def work() -> None:
        queue = RedisWorkerQueue(url, RUN, "worker")
        rollout = a_rollout(a_ticket(0))
        while True:
            claims = await queue.take(IN_FLIGHT, 1.0)
            await asyncio.gather(*(queue.finish(claim, replace(rollout, ticket=claim.ticket)) for claim in claims))

    asyncio.run(work())


def _work_on_lists(url: str) -> None:
    """The peer's worker."""
    client = redis.Redis.from_url(url, socket_timeout=None)
    rollout = a_rollout(a_ticket(0))
    while (data := client.blpop([TICKETS])[1]) != END:
        client.rpush(RESULTS, pickle.dumps(replace(rollout, ticket=pickle.loads(data))))


def ours(queue: RedisLearnerQueue, count: int) -> float:
    """Rollouts per second, the learner's side."""
    queue.open(RUN, "a")
    tickets = [a_ticket(index) for index in range(count)]
    began = time.perf_counter()
    queue.issue(tickets)
    left = count
    while left:
        deliveries = queue.receive(1.0)
        queue.settle(delivery.receipt for delivery in deliveries)
        left -= len(deliveries)
    return count / (time.perf_counter() - began)


def lists(url: str, count: int) -> float:
    """Rollouts per second, the peer's."""
    with redis.Redis.from_url(url, socket_timeout=None) as client:
        tickets = [pickle.dumps(a_ticket(index)) for index in range(count)]
        began = time.perf_counter()
        client.rpush(TICKETS, *tickets)
        for _ in range(count):
            pickle.loads(client.blpop([RESULTS])[1])
        return count / (time.perf_counter() - began)


def memory_per_rollout(url: str, count: int) -> tuple[float, float]:
    """Bytes of Redis memory for each unsettled rollout, and what stays behind once all are settled."""
    queue = RedisLearnerQueue(url)
    with redis.Redis.from_url(url) as client:

        def used() -> int:
            return int(client.info("memory")["used_memory"])

        queue.open("memory", "a")
        before = used()
        queue.issue([replace(a_ticket(index), run="memory") for index in range(count)])

        async def finish() -> None:
            worker = RedisWorkerQueue(url, "memory", "worker")
            done = 0
            while done < count:
                for claim in await worker.take(IN_FLIGHT, 1.0):
                    await worker.finish(claim, a_rollout(claim.ticket))
                    done += 1
            await worker.close()

        asyncio.run(finish())
        full = used()
        received = 0
        while received < count:
            deliveries = queue.receive(1.0)
            queue.settle(delivery.receipt for delivery in deliveries)
            received += len(deliveries)
        after = used()
    queue.close()
    return (full - before) / count, (after - before) / count


def main() -> None:
    arguments = parser(__doc__).parse_args()
    count = 200 if arguments.small else 2000
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        queue = RedisLearnerQueue(server.url)
        workers = [spawn.Process(target=target, args=(server.url,), daemon=True) for target in (_work, _work_on_lists)]
        for worker in workers:
            worker.start()
        ours(queue, 50)  # from here on both workers are up
        lists(server.url, 50)
        rates = alternate(arguments.runs, ours=lambda: ours(queue, count), peer=lambda: lists(server.url, count))
        for worker in workers:
            worker.terminate()
            worker.join()
        queue.close()
        held, left = memory_per_rollout(server.url, count)
    bytes_on_wire = len(wire.rollout_bytes(a_rollout(a_ticket(0))))
    row = {
        "tokens": TOKENS,
        "rollouts/s": statistics.median(rates["ours"]),
        "lists and pickle": statistics.median(rates["peer"]),
        "ratio": median_ratio(rates["ours"], rates["peer"]),
        "bytes": bytes_on_wire,
        "bytes in Redis": held,
        "bytes once settled": left,
    }
    report("queue", [row], arguments, f"Goal: at least 500 rollouts/s. {count} rollouts a run, append-only file on.")


if __name__ == "__main__":
    main()
