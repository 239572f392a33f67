"""Wild requests to running servers: refused by name or answered, never INTERNAL, and the server lives on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from lodestar.rpc.channel import serving
from lodestar.v1 import (
    common_pb2,
    policy_pb2,
    policy_pb2_grpc,
    reference_pb2,
    reference_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
)

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}
FLOATS = (0.0, 1.0, 0.7, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
COUNTS = (0, 1, 2, 3, 8, 40, 70, 2**16, 2**32 - 1)
TEXTS = ("", " ", "the sky", "\0", "<eos><pad><bos>", "é\u2028\U0001f600", "sky " * 90, "x" * 5000)
HASHES = (*[""] * 8, "f" * 64, "\0")

Random = random.Random


def ids(rng: Random) -> list[int]:
    wild = rng.random() < 0.2
    length = rng.choice((0, 1, 2, 5, 20, 63, 64, 65)) if wild else rng.randint(2, 20)
    return [rng.choice((3, 7, 19, 20, 10_000, 2**32 - 1)) if wild else rng.randrange(15) for _ in range(length)]


def scored(rng: Random) -> list[policy_pb2.Scored]:
    return [
        policy_pb2.Scored(token_ids=ids(rng), prompt_tokens=rng.choice((*[1] * 12, *COUNTS)))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))
    ]


def logprobs_options(rng: Random) -> dict[str, Any]:
    temperature = {} if rng.random() < 0.7 else {"temperature": rng.choice(FLOATS)}
    return {"entropy": rng.random() < 0.5, "tokenizer_hash": rng.choice(HASHES), **temperature}


def score_item(rng: Random) -> reward_pb2.ScoreItem:
    item = reward_pb2.ScoreItem(cut_off=rng.random() < 0.3)
    as_text = rng.random() < 0.7
    for half in ("prompt", "completion"):
        if rng.random() < 0.1:
            continue
        if as_text != (rng.random() < 0.1):
            setattr(item, f"{half}_text", rng.choice(TEXTS))
        else:
            getattr(item, f"{half}_tokens").CopyFrom(common_pb2.Tokens(ids=ids(rng)))
    return item


def sampling(rng: Random) -> policy_pb2.SamplingParams:
    message = policy_pb2.SamplingParams(max_tokens=rng.choice((1, 2, 3)), n=rng.choice((0, 1, 2)))
    wild: dict[str, Callable[[], Any]] = {
        "max_tokens": lambda: rng.choice(COUNTS),
        "n": lambda: rng.choice(COUNTS),
        "min_tokens": lambda: rng.choice(COUNTS),
        "temperature": lambda: rng.choice(FLOATS),
        "top_p": lambda: rng.choice(FLOATS),
        "top_k": lambda: rng.choice(COUNTS),
        "min_p": lambda: rng.choice(FLOATS),
        "seed": lambda: rng.choice((0, 2**64 - 1)),
        "top_logprobs": lambda: rng.choice(COUNTS),
        "logprobs": lambda: True,
        "ignore_eos": lambda: True,
    }
    for name in rng.sample(sorted(wild), rng.choice((0, 1, 2))):
        setattr(message, name, wild[name]())
    if rng.random() < 0.2:
        message.stop.append(rng.choice(TEXTS))
    if rng.random() < 0.2:
        message.stop_token_ids.append(rng.choice((3, 2**32 - 1)))
    if rng.random() < 0.2:
        message.logit_bias[rng.choice((3, 2**32 - 1))] = rng.choice(FLOATS)
    return message


def generate(rng: Random) -> policy_pb2.GenerateRequest:
    request = policy_pb2.GenerateRequest(
        sampling=sampling(rng),
        tokenizer_hash=rng.choice(HASHES),
        purpose=rng.choice((0, 1, 2, 2, 9)),
        wait_seconds=rng.choice((0.0, 0.0, *FLOATS)) if rng.random() < 0.2 else 0.0,
    )
    kind = rng.choice(("text", "tokens", "tokens", "tokens", "chat", "none"))
    if kind == "text":
        request.text = rng.choice(TEXTS)
    elif kind == "tokens":
        request.tokens.CopyFrom(common_pb2.Tokens(ids=ids(rng)))
    elif kind == "chat":
        roles = ("user", "assistant", "", "\0")
        turns = [
            common_pb2.ChatMessage(role=rng.choice(roles), content=rng.choice(TEXTS)) for _ in range(rng.randrange(3))
        ]
        request.chat.CopyFrom(common_pb2.Chat(messages=turns))
    if rng.random() < 0.1:
        request.min_version.CopyFrom(common_pb2.WeightVersion(incarnation="x", step=2**64 - 1))
    return request


def ask_reward(channel: grpc.Channel, rng: Random) -> None:
    items = [score_item(rng) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    request = reward_pb2.ScoreRequest(items=items, tokenizer_hash=rng.choice(HASHES))
    reply = reward_pb2_grpc.RewardServiceStub(channel).Score(request, timeout=20)
    assert len(reply.scores) == len(items)


def ask_reference(channel: grpc.Channel, rng: Random) -> None:
    request = reference_pb2.ReferenceServiceLogProbsRequest(sequences=scored(rng), **logprobs_options(rng))
    reply = reference_pb2_grpc.ReferenceServiceStub(channel).LogProbs(request, timeout=20)
    wanted = [len(sequence.token_ids) - sequence.prompt_tokens for sequence in request.sequences]
    assert [len(answer.logprobs) for answer in reply.sequences] == wanted


def ask_policy(channel: grpc.Channel, rng: Random) -> None:
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    if rng.random() < 0.3:
        stub.LogProbs(
            policy_pb2.PolicyServiceLogProbsRequest(sequences=scored(rng), **logprobs_options(rng)), timeout=20
        )
        return
    request = generate(rng)
    ended = [chunk.sample_index for chunk in stub.Generate(request, timeout=20) if chunk.finish_reason]
    assert sorted(ended) == list(range(request.sampling.n or 1))


ROLES = {"reward": ask_reward, "reference": ask_reference, "policy": ask_policy}


@pytest.mark.parametrize("cases", [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("role", ROLES)
def test_wild_requests_are_answered_or_refused(start_service: Any, tiny_models: Any, role: str, cases: int) -> None:
    model = tiny_models.reward if role == "reward" else tiny_models.sft
    service = start_service(role, model=str(model), section={"batch_wait_ms": 0} if role != "policy" else {})
    rng, seen = random.Random(7), Counter[str]()
    with grpc.insecure_channel(service.address, options=[("grpc.enable_retries", 0)]) as channel:
        for _ in range(cases):
            try:
                ROLES[role](channel, rng)
                seen["OK"] += 1
            except grpc.RpcError as error:
                seen[error.code().name] += 1
                if error.code() not in REFUSALS:
                    pytest.fail(f"{error}\n{service.child.tail(30)}")
    assert serving(service.address)
    service.child.stop(10)
    assert service.child.exit_code == 0
    # Both sides of the border were visited.
    assert seen["OK"] > cases / 10
    assert seen["INVALID_ARGUMENT"] > cases / 10
