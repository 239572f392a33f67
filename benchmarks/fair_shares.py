"""Training beside outside callers at one server: what is left of its tickets per second, and how long a lone caller
waits.

A policy server and a reference server run as processes of their own on a tiny model. Training is 64 tickets at once,
each sent again when it is answered, as a rollout worker does; the callers are 300 connections that do the same. Each
phase runs on the same server: training alone, beside 300 callers, a lone caller alone, a lone caller beside training.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from harness import parser, report

from lodestar.config.serve import Listening, PolicyTask, ReferenceTask
from lodestar.local.ports import free_ports
from lodestar.local.processes import Child, Processes
from lodestar.local.tiny import write_tiny_models
from lodestar.rpc.channel import serving
from lodestar.rpc.flows import FOR_TRAINING
from lodestar.v1 import policy_pb2, policy_pb2_grpc, reference_pb2, reference_pb2_grpc

TICKETS, CALLERS = 64, 300
PROMPT = list(range(3, 11))
RESPONSE = 32


def policy_call(channel: grpc.aio.Channel, training: bool) -> Callable[[], Awaitable[None]]:
    """A ticket's rollout, or a caller's stream of tokens."""
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    sampling = policy_pb2.SamplingParams(max_tokens=RESPONSE, ignore_eos=not training, logprobs=training)
    purpose = policy_pb2.PURPOSE_TRAINING if training else policy_pb2.PURPOSE_SERVING
    request = policy_pb2.GenerateRequest(tokens={"ids": PROMPT}, sampling=sampling, purpose=purpose)

    async def call() -> None:
        async for _ in stub.Generate(request, timeout=600, metadata=FOR_TRAINING if training else ()):
            pass

    return call


def reference_call(channel: grpc.aio.Channel, training: bool) -> Callable[[], Awaitable[None]]:
    """Log-probs of one response."""
    stub = reference_pb2_grpc.ReferenceServiceStub(channel)
    scored = {"token_ids": PROMPT + [5] * RESPONSE, "prompt_tokens": len(PROMPT)}
    request = reference_pb2.ReferenceServiceLogProbsRequest(sequences=[scored])

    async def call() -> None:
        await stub.LogProbs(request, timeout=600, metadata=FOR_TRAINING if training else ())

    return call


CALLS = {"policy": policy_call, "reference": reference_call}


async def clocked(role: str, address: str, count: int, training: bool, window: Any, ready: Any) -> list[float]:
    """Seconds of each call that ended within the window, of ``count`` connections that call without a pause.

    ``ready`` is told once each has had an answer; the window's moments are set after that.
    """
    seen: list[float] = []
    answered: set[int] = set()

    async def one(number: int, channel: grpc.aio.Channel) -> None:
        call = CALLS[role](channel, training)
        while time.time() < window[1]:
            began = time.time()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call()
                if window[0] <= time.time() < window[1]:
                    seen.append(time.time() - began)
                if number not in answered:
                    answered.add(number)
                    if len(answered) == count:
                        ready.set()

    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        shared = 1 if training else count  # a worker has one connection, outside callers one each
        opened = [await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(shared)]
        await asyncio.gather(*(one(i, opened[i % shared]) for i in range(count)))
    return seen


def crowd(role: str, address: str, count: int, training: bool, window: Any, ready: Any, told: Any) -> None:
    """:func:`clocked` in a process of its own; a crowd leaves the cores to the server, as one elsewhere would."""
    if count > 1:
        os.nice(10)
    told.put(asyncio.run(clocked(role, address, count, training, window, ready)))


def phase(role: str, address: str, crowds: dict[bool, int], seconds: float) -> dict[bool, list[float]]:
    """Seconds of the calls of each crowd (True: training) in one phase."""
    spawn = multiprocessing.get_context("spawn")
    told = {side: spawn.SimpleQueue() for side in crowds}
    window = spawn.Array("d", [math.inf, math.inf], lock=False)
    started, ready = [], []
    for side, count in crowds.items():
        ready.append(spawn.Event())
        started.append(spawn.Process(target=crowd, args=(role, address, count, side, window, ready[-1], told[side])))
        started[-1].start()
    for event in ready:
        assert event.wait(120), "somebody had no answer for two minutes"
    now = time.time()
    window[0], window[1] = now, now + seconds
    seen = {side: queue.get() for side, queue in told.items()}
    for process in started:
        process.join()
    return seen


@contextlib.contextmanager
def served(role: str, folder: Path) -> Iterator[str]:
    """Address of a server that is ready."""
    (port,) = free_ports(1)
    model, listening = str(folder / "tiny" / "policy"), Listening(port=port)
    kinds = {"policy": PolicyTask, "reference": ReferenceTask}
    task = kinds[role](run="bench", folder=folder, model=model, listening=listening)
    with Processes(folder / "logs") as processes:
        child: Child = processes.start(role, "lodestar.crew.work:serve", {"task": task.model_dump(mode="json")})
        while not serving(f"127.0.0.1:{port}"):
            if child.wait(0.1) is not None:
                raise child.error()
        yield f"127.0.0.1:{port}"


def main(arguments: argparse.Namespace) -> None:
    """The four phases on each server, ``--runs`` times in turn."""
    seconds = 2.0 if arguments.small else 6.0
    runs = 1 if arguments.small else arguments.runs
    rows: list[dict[str, Any]] = []
    phases = {
        "training alone": {True: TICKETS},
        f"training and {CALLERS} callers": {True: TICKETS, False: CALLERS},
        "lone caller": {False: 1},
        "lone caller and training": {True: TICKETS, False: 1},
    }
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_tiny_models(folder / "tiny", hidden=64, layers=4)
        for role in CALLS:
            with served(role, folder) as address:
                for run, (name, crowds) in itertools.product(range(runs), phases.items()):
                    seen = phase(role, address, crowds, seconds)
                    row: dict[str, Any] = {"server": role, "run": run, "what": name}
                    for side, word in ((True, "tickets"), (False, "calls")):
                        answered = seen.get(side, [])
                        row[f"{word} per second"] = len(answered) / seconds
                        several = [*answered, *answered[:1]] if answered else [float("nan")] * 2
                        row[f"{word} p95 ms"] = 1000 * statistics.quantiles(several, n=20)[-1]
                    rows.append(row)
    reached = {role: verdict([row for row in rows if row["server"] == role]) for role in CALLS}
    notes = f"reach: kept ≥ 0.9 of half of training's rate alone, slower ≤ 2 × of a lone caller's p95; seen: {reached}"
    report("fair_shares", rows, arguments, notes, reached=reached)


def verdict(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the runs of what the goals speak of."""
    figures = partial(_of, rows)
    kept = [b / (0.5 * a) for a, b in zip(*figures("tickets per second", "training alone", "callers"), strict=True)]
    slower = [b / a for a, b in zip(*figures("calls p95 ms", "lone caller", "lone caller and"), strict=True)]
    return {"kept": statistics.median(kept), "slower": statistics.median(slower)}


def _of(rows: list[dict[str, Any]], figure: str, before: str, after: str) -> tuple[list[float], list[float]]:
    first = [row[figure] for row in rows if row["what"] == before]
    second = [row[figure] for row in rows if row["what"] != before and after in row["what"]]
    return first, second


if __name__ == "__main__":
    main(parser(__doc__, runs=2).parse_args())
