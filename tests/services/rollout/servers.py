"""Model services small enough to know every answer, behind real gRPC servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from lodestar.errors import LodestarError
from lodestar.rpc.interceptors import CallInterceptor
from lodestar.v1 import (
    common_pb2,
    policy_pb2,
    policy_pb2_grpc,
    reference_pb2,
    reference_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
)

Trouble = Callable[[str], LodestarError | None]


@dataclass
class Answers:
    """What the three services say, and what they were asked."""

    tokenizer: str = "tok"
    reward_tokenizer: str = "tok"
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    """Generate waits for it."""
    trouble: Trouble = lambda _: None
    """Called with policy, reward or reference before every answer; an error it returns is raised."""
    calls: Counter[str] = field(default_factory=Counter)
    requests: list[Any] = field(default_factory=list)

    def arrive(self, role: str, request: Any) -> None:
        """Counts a call and fails it when the test says so."""
        self.calls[role] += 1
        self.requests.append(request)
        if error := self.trouble(role):
            raise error


def info(tokenizer: str, incarnation: str = "", step: int = 0) -> common_pb2.ModelInfo:
    version = common_pb2.WeightVersion(incarnation=incarnation, step=step, digest="d")
    return common_pb2.ModelInfo(name="tiny", version=version, tokenizer_hash=tokenizer)


class Policy(policy_pb2_grpc.PolicyServiceServicer):
    """Sample i of a prompt is the tokens (100 + i, 1)."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self.answers.arrive("policy", request)
        await self.answers.hold.wait()
        wanted = request.min_version
        for index in range(request.sampling.n):
            yield policy_pb2.GenerateResponse(
                model=info(self.answers.tokenizer, wanted.incarnation, wanted.step),
                sample_index=index,
                token_ids=[100 + index, 1],
                text=f"sample {index}",
                logprobs=[-1.0, -0.5],
                finish_reason=policy_pb2.FINISH_REASON_EOS,
                prompt_tokens=len(request.tokens.ids),
            )

    async def GetModel(self, request: Any, context: Any) -> policy_pb2.PolicyServiceGetModelResponse:
        return policy_pb2.PolicyServiceGetModelResponse(model=info(self.answers.tokenizer), context_tokens=64)


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """The score is the item's place."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        self.answers.arrive("reward", request)
        scores = [
            reward_pb2.Score(score=place, mean=place, standard_deviation=0.5) for place in range(len(request.items))
        ]
        return reward_pb2.ScoreResponse(model=info(self.answers.reward_tokenizer), scores=scores)

    async def GetModel(self, request: Any, context: Any) -> reward_pb2.RewardServiceGetModelResponse:
        return reward_pb2.RewardServiceGetModelResponse(model=info(self.answers.reward_tokenizer), context_tokens=64)


class Reference(reference_pb2_grpc.ReferenceServiceServicer):
    """Every log-prob is −2."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    async def LogProbs(
        self, request: reference_pb2.ReferenceServiceLogProbsRequest, context: Any
    ) -> reference_pb2.ReferenceServiceLogProbsResponse:
        self.answers.arrive("reference", request)
        return reference_pb2.ReferenceServiceLogProbsResponse(
            model=info(self.answers.tokenizer),
            sequences=[
                policy_pb2.TokenLogProbs(logprobs=[-2.0] * (len(scored.token_ids) - scored.prompt_tokens))
                for scored in request.sequences
            ],
        )

    async def GetModel(self, request: Any, context: Any) -> reference_pb2.ReferenceServiceGetModelResponse:
        return reference_pb2.ReferenceServiceGetModelResponse(model=info(self.answers.tokenizer), context_tokens=64)


@asynccontextmanager
async def serving(answers: Answers) -> AsyncIterator[str]:
    """The address of a server with all three services."""
    server = grpc.aio.server(interceptors=[CallInterceptor(lambda: True)])
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(Policy(answers), server)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(Reward(answers), server)
    reference_pb2_grpc.add_ReferenceServiceServicer_to_server(Reference(answers), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
