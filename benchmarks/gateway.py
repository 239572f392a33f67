"""What the gateway costs: OpenAI's HTTP API against the gRPC that is behind it, on one policy server.

Latency: one caller asks for one token over a connection that stays open. Throughput: 64 callers stream at once; a token
counts when its caller has it. Both sides in turn, every process on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import alternate, median_ratio, parser, report

from lodestar.client import AsyncPolicyClient, PolicyClient
from lodestar.config import GatewayTask, PolicyTask, Task
from lodestar.files import read_json
from lodestar.local.ports import free_ports
from lodestar.local.processes import Processes
from lodestar.local.tiny import write_tiny_models
from lodestar.rpc.channel import serving

MODEL = {"hidden": 192, "layers": 4, "vocab": 4096}
"""Of examples/hh.yaml's size."""
GOALS = {"added latency ms": 3.0, "throughput ratio": 0.95}
NAME = "bench"


@dataclass(frozen=True)
class Served:
    """Where both listen, and what is asked of them."""

    grpc: str
    http_port: int
    prompt: list[int]
    streams: int
    tokens: int


@contextmanager
def served(root: Path, shape: dict[str, int], streams: int, tokens: int) -> Iterator[Served]:
    """A policy server and a gateway before it, each a process."""
    prompts = write_tiny_models(root / "tiny", **shape, eos_bias=0.0, prompts=1, prompt_tokens=(16, 16))
    port, gateway_port, http_port, *metrics_ports = free_ports(5)

    def task(role: str, listening: dict[str, int], **told: Any) -> dict[str, Any]:
        return {"role": role, "run": "bench", "folder": str(root), "listening": listening, **told}

    policy = task("policy", {"port": port, "metrics_port": metrics_ports[0]}, model=str(root / "tiny" / "policy"))
    gateway = task(
        "gateway",
        {"port": gateway_port, "metrics_port": metrics_ports[1], "http_port": http_port},
        section={"name": NAME},
        endpoints={"policy": [f"127.0.0.1:{port}"]},
    )
    with Processes(root / "logs") as processes:
        tasks: list[tuple[int, Task]] = [
            (port, PolicyTask.model_validate(policy)),
            (gateway_port, GatewayTask.model_validate(gateway)),
        ]
        for at, one in tasks:
            child = processes.start(one.name, "lodestar.crew.work:serve", {"task": one.model_dump(mode="json")})
            deadline = time.monotonic() + 120
            while not serving(f"127.0.0.1:{at}"):
                assert child.alive, child.tail(20)
                assert time.monotonic() < deadline, child.tail(20)
                time.sleep(0.05)
        assert read_json(root / "services" / "gateway-0.json")["http_port"] == http_port
        yield Served(f"127.0.0.1:{port}", http_port, prompts[0], streams, tokens)


def body(at: Served, tokens: int, seed: int, **more: Any) -> bytes:
    """A completions request."""
    asked = {"model": NAME, "prompt": at.prompt, "max_tokens": tokens, "ignore_eos": True, "seed": seed}
    return json.dumps({**asked, **more}).encode()


def latencies(at: Served, calls: int) -> tuple[float, float]:
    """Median milliseconds of one token: over HTTP, over gRPC, call by call in turn."""
    connection = http.client.HTTPConnection("127.0.0.1", at.http_port)
    headers = {"content-type": "application/json"}
    took: dict[str, list[float]] = {"http": [], "grpc": []}
    with PolicyClient(at.grpc) as client:
        for call in range(calls + 10):
            began = time.perf_counter()
            client.generate(at.prompt, max_tokens=1, seed=call, ignore_eos=True)
            between = time.perf_counter()
            connection.request("POST", "/v1/completions", body(at, 1, call), headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            ended = time.perf_counter()
            if call >= 10:
                took["grpc"].append(1000 * (between - began))
                took["http"].append(1000 * (ended - between))
    connection.close()
    return statistics.median(took["http"]), statistics.median(took["grpc"])


async def over_grpc(at: Served) -> int:
    """Tokens of all streams."""
    async with AsyncPolicyClient(at.grpc, timeout=600) as client:

        async def one(seed: int) -> int:
            chunks = client.stream(at.prompt, max_tokens=at.tokens, seed=seed, ignore_eos=True)
            return sum([len(chunk.token_ids) async for chunk in chunks])

        return sum(await asyncio.gather(*map(one, range(at.streams))))


async def over_http(at: Served) -> int:
    """Tokens of all streams, by the usage that each ends with."""

    async def one(seed: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.http_port)
        data = body(at, at.tokens, seed, stream=True, stream_options={"include_usage": True})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        usage = b""
        while b"[DONE]" not in (line := await reader.readline()):
            assert line, "the stream ended early"
            if line.startswith(b"data: "):
                usage = line
        writer.close()
        return int(json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"])

    return sum(await asyncio.gather(*map(one, range(at.streams))))


def rate(at: Served, work: Any) -> float:
    """Tokens per second."""
    began = time.perf_counter()
    tokens = asyncio.run(work(at))
    assert tokens == at.streams * at.tokens
    return float(tokens / (time.perf_counter() - began))


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Both figures on one server."""
    shape, streams, tokens, calls = MODEL, 64, 128, 200
    if arguments.small:
        shape, streams, tokens, calls = {"hidden": 32, "layers": 1, "vocab": 64}, 4, 8, 5
    with tempfile.TemporaryDirectory() as name, served(Path(name), shape, streams, tokens) as at:
        for work in (over_grpc, over_http):  # warm
            rate(at, work)
        pairs = [latencies(at, calls) for _ in range(arguments.runs)]
        rates = alternate(arguments.runs, http=lambda: rate(at, over_http), grpc=lambda: rate(at, over_grpc))
    over, behind = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "http ms": over,
        "grpc ms": behind,
        "added latency ms": statistics.median(one - other for one, other in pairs),
        "http tokens/s": statistics.median(rates["http"]),
        "grpc tokens/s": statistics.median(rates["grpc"]),
        "throughput ratio": median_ratio(rates["http"], rates["grpc"]),
    }


def main() -> None:
    arguments = parser(__doc__).parse_args()
    notes = f"64 streams; goals: added latency at most {GOALS['added latency ms']} ms, ratio at least 0.95"
    report("gateway", [{"case": "hh model", **measure(arguments)}], arguments, notes, goals=GOALS)


if __name__ == "__main__":
    main()
