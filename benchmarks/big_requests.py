"""64 callers that send texts too long by far, beside honest ones: how long health and honest callers wait for answers.

The policy server runs as a process of its own on a tiny model. Each of the 64 sends its text again as soon as it is
refused. Undisturbed and disturbed alternate on one server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import parser, report

from lodestar.config.serve import Listening, PolicyTask
from lodestar.local.ports import free_ports
from lodestar.local.processes import Processes
from lodestar.local.tiny import write_tiny_models
from lodestar.rpc.channel import serving
from lodestar.v1 import policy_pb2, policy_pb2_grpc

CALLERS, HONEST = 64, 4
TEXT_BYTES = 3_900_000
"""Just below max_message_bytes, so that the server's own bound has to refuse it."""


def disturb(address: str, seconds: float) -> None:
    """All the disturbers, in a process of their own so that they do not slow our clocks."""

    async def send(over: float) -> None:
        options = [("grpc.max_send_message_length", 2**25), ("grpc.use_local_subchannel_pool", 1)]
        big = policy_pb2.TokenizeRequest(text="word " * (TEXT_BYTES // 5)).SerializeToString()
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call = channel.unary_unary("/lodestar.v1.PolicyService/Tokenize")
            while time.monotonic() < over:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(big, timeout=120)

    async def send_all() -> None:
        over = time.monotonic() + seconds
        await asyncio.gather(*(send(over) for _ in range(CALLERS)))

    asyncio.run(send_all())


async def measure(address: str, seconds: float) -> dict[str, float]:
    """Latencies in ms of health checks and of honest calls."""
    async with contextlib.AsyncExitStack() as stack:
        over = time.monotonic() + seconds
        request = policy_pb2.GenerateRequest(text="t5 t6 t7", sampling=policy_pb2.SamplingParams(max_tokens=8))

        async def channel() -> grpc.aio.Channel:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))

        async def clock(call: Callable[[], Awaitable[object]], pause: float) -> list[float]:
            seen = []
            while time.monotonic() < over:
                began = time.perf_counter()
                await call()
                seen.append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(pause)
            return seen

        async def generate(stub: policy_pb2_grpc.PolicyServiceStub) -> None:
            async for _ in stub.Generate(request, timeout=120):
                pass

        probe, ask = health_pb2_grpc.HealthStub(await channel()), health_pb2.HealthCheckRequest()
        stubs = [policy_pb2_grpc.PolicyServiceStub(await channel()) for _ in range(HONEST)]
        checks, *answers = await asyncio.gather(
            clock(lambda: probe.Check(ask, timeout=120), 0.02),
            *(clock(partial(generate, stub), 0.05) for stub in stubs),
        )
    answered = [one for answer in answers for one in answer]
    return {
        "health p50 ms": statistics.median(checks),
        "health p99 ms": statistics.quantiles([*checks, checks[0]], n=100)[-1],
        "health max ms": max(checks),
        "honest p95 ms": statistics.quantiles([*answered, answered[0]], n=20)[-1],
    }


def main(arguments: argparse.Namespace) -> None:
    """Undisturbed and disturbed in turn, on one server."""
    seconds = 2.0 if arguments.small else 10.0
    runs = 1 if arguments.small else arguments.runs
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_tiny_models(folder / "tiny")
        (port,) = free_ports(1)
        task = PolicyTask(
            run="bench", folder=folder, model=str(folder / "tiny" / "policy"), listening=Listening(port=port)
        )
        with Processes(folder / "logs") as processes:
            child = processes.start("policy", "lodestar.crew.work:serve", {"task": task.model_dump(mode="json")})
            address = f"127.0.0.1:{port}"
            while not serving(address):
                if child.wait(0.1) is not None:
                    raise child.error()
            rows = []
            for number in range(runs):
                for name in ("undisturbed", f"{CALLERS} callers"):
                    others = multiprocessing.get_context("spawn").Process(target=disturb, args=(address, seconds + 3))
                    if name != "undisturbed":
                        others.start()
                        time.sleep(3)  # until it has imported what it needs
                    figures = asyncio.run(measure(address, seconds))
                    memory = psutil.Process(child.pid).memory_full_info().uss / 2**20
                    if others.pid is not None:
                        others.join()
                    rows.append({"run": number, "what": name, **figures, "memory MiB": memory})
    report("big_requests", rows, arguments, "reach: health within 100 ms, honest p95 ≤ 1.5 ×, memory ≤ 1.2 ×")


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
