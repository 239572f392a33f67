"""Wild requests and long load: the server stays healthy and gives every block back. Minutes; run by make test-slow."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import grpc
import psutil
import pytest

from lodestar.client import AsyncPolicyClient, AsyncPolicyControlClient, PolicyClient, PolicyControlClient
from lodestar.errors import LodestarError
from lodestar.rpc.channel import sync_channel
from lodestar.v1 import common_pb2, policy_pb2, policy_pb2_grpc

WILD_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf")]
WILD_COUNTS = [0, 1, 2, 3, 20, 21, 63, 64, 65, 4096, 2**31, 2**32 - 1]
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE}


def wild_request(rng: random.Random) -> policy_pb2.GenerateRequest:
    """A request of which some field or other is likely to be nonsense."""
    sampling = policy_pb2.SamplingParams(max_tokens=rng.choice([1, 2, 3, rng.choice(WILD_COUNTS)]))
    for field in ("n", "min_tokens", "top_k", "top_logprobs"):
        if rng.random() < 0.15:
            setattr(sampling, field, rng.choice(WILD_COUNTS))
    for field in ("temperature", "top_p", "min_p"):
        if rng.random() < 0.2:
            setattr(sampling, field, rng.choice(WILD_FLOATS))
    if rng.random() < 0.2:
        sampling.seed = rng.choice([0, 1, 2**64 - 1])
    if rng.random() < 0.1:
        sampling.logit_bias[rng.choice(WILD_COUNTS)] = rng.choice(WILD_FLOATS)
    if rng.random() < 0.1:
        sampling.stop.extend(rng.choice(["", "x", "the", "é" * 400]) for _ in range(rng.choice([1, 17])))
    if rng.random() < 0.1:
        sampling.stop_token_ids.extend(rng.choice(WILD_COUNTS) for _ in range(rng.choice([1, 17])))
    request = policy_pb2.GenerateRequest(sampling=sampling)
    kind = rng.random()
    if kind < 0.6:
        ids = [rng.randrange(2, 12) for _ in range(rng.choice([0, 1, 5, 40, 63, 64, 200]))]
        if ids and rng.random() < 0.2:
            ids[rng.randrange(len(ids))] = rng.choice(WILD_COUNTS)
        request.tokens.CopyFrom(common_pb2.Tokens(ids=ids))
    elif kind < 0.8:
        request.text = rng.choice(["", "what color is the sky ?", "\x00\ufffd🙂", "the " * 200])
    elif kind < 0.9:
        request.chat.CopyFrom(common_pb2.Chat(messages=[common_pb2.ChatMessage(role="?", content="hi")]))
    if rng.random() < 0.1:
        request.purpose = rng.choice([0, 1, 2, 7])
    if rng.random() < 0.1:
        request.wait_seconds = rng.choice([0.0, -1.0, float("nan"), 1e9])
    if rng.random() < 0.05:
        request.min_version.incarnation = "elsewhere"
        request.wait_seconds = 0.0
    if rng.random() < 0.05:
        request.tokenizer_hash = "nonsense"
    return request


def bombard(service: Any, count: int, seed: int) -> dict[str, int]:
    """Answers by status code; every one must be an answer or a refusal that is the caller's fault."""
    rng = random.Random(seed)
    outcomes: dict[str, int] = {}
    with sync_channel(service.address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for _ in range(count):
            request = wild_request(rng)
            code = grpc.StatusCode.OK
            try:
                list(stub.Generate(request, timeout=20))
            except grpc.RpcError as error:
                code = error.code()
            assert code is grpc.StatusCode.OK or code in REFUSALS, (code, request)
            outcomes[code.name] = outcomes.get(code.name, 0) + 1
    with PolicyControlClient(service.address) as control:
        status = control.status()
        assert (status.running_sequences, status.waiting_sequences, status.kv_blocks_used) == (0, 0, 0)
    with PolicyClient(service.address) as client:
        assert client.generate((3, 4), max_tokens=2).completions
    return outcomes


def test_300_wild_requests_leave_the_server_healthy_and_empty(start_service: Any, tiny_models: Any) -> None:
    service = start_service("policy", model=str(tiny_models.sft))
    outcomes = bombard(service, 300, seed=0)
    assert outcomes["OK"] > 20
    assert outcomes["INVALID_ARGUMENT"] > 100
    service.child.stop(5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_10000_wild_requests_leave_the_server_healthy_and_empty(start_service: Any, tiny_models: Any) -> None:
    service = start_service("policy", model=str(tiny_models.sft))
    print(bombard(service, 10_000, seed=1))
    service.child.stop(5)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_minutes_at_full_admission_with_cancellations_leak_nothing(
    start_service: Any, tiny_models: Any
) -> None:
    policy = {"max_sequences": 32, "max_waiting": 256, "kv_cache_tokens": 1024}
    service = start_service("policy", model=str(tiny_models.sft), section=policy)
    process = psutil.Process(service.child.pid)
    rng = random.Random(0)
    deadline = time.monotonic() + 600
    memory: list[tuple[float, int]] = []
    counts = {"finished": 0, "cancelled": 0, "refused": 0}

    async def caller(client: AsyncPolicyClient) -> None:
        while time.monotonic() < deadline:
            prompt = [rng.randrange(2, 12) for _ in range(rng.randrange(1, 30))]
            stream = client.stream(prompt, n=rng.randrange(1, 5), max_tokens=rng.randrange(1, 34), ignore_eos=True)
            stop_after = rng.randrange(1, 20) if rng.random() < 0.3 else 10_000
            try:
                async with contextlib.aclosing(stream):
                    async for number, _ in _numbered(stream):
                        if number >= stop_after:
                            counts["cancelled"] += 1
                            break
                    else:
                        counts["finished"] += 1
            except LodestarError:
                counts["refused"] += 1
                await asyncio.sleep(0.05)

    async def watch() -> None:
        while time.monotonic() < deadline:
            memory.append((600 - (deadline - time.monotonic()), process.memory_info().rss))
            await asyncio.sleep(5)

    async with AsyncPolicyClient(service.address) as client, AsyncPolicyControlClient(service.address) as control:
        await asyncio.gather(watch(), *(caller(client) for _ in range(120)))
        await asyncio.sleep(1)
        status = await control.status()
    assert (status.running_sequences, status.waiting_sequences, status.kv_blocks_used) == (0, 0, 0)
    settled = [rss for second, rss in memory if second > 120]
    growth = (sum(settled[-20:]) - sum(settled[:20])) / 20
    print(counts, f"resident {settled[0] / 1e6:.1f} MB after 2 minutes, {settled[-1] / 1e6:.1f} MB at the end")
    assert counts["cancelled"] > 100
    assert growth < 10e6
    service.child.stop(5)


async def _numbered(stream: Any) -> Any:
    number = 0
    async for item in stream:
        yield number, item
        number += 1
