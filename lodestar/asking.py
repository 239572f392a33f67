"""Replies of running policy servers, scored by reward servers, and by the synthetic world's gold where it is known.

Prompts go out as text with a seed of their own each, so that asking the same weights again gets the same samples. All
calls are ordinary callers' traffic over gRPC: many in flight, tried again while a server restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from lodestar.client import AsyncPolicyClient, AsyncRewardClient
from lodestar.data.world import gold_reward
from lodestar.errors import Unavailable
from lodestar.records import FinishReason, Prompt, SamplingParams, ScoreItem

T = TypeVar("T")
Judge = Literal["gold", "reward"]
PATIENCE_SECONDS = 120.0
"""How long a call is tried again while its server is away."""
CALL_SECONDS = 600.0
SAMPLES_IN_FLIGHT = 512
"""To all policy servers: twice what one decodes at once by default."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One judged response: a half of a line of samples.jsonl."""

    text: str
    tokens: int
    finish_reason: str
    step: int
    """PPO step of the weights that wrote it."""
    score: float
    """The reward's."""
    gold: float | None = None
    """The synthetic world's hidden reward."""

    def judged_by(self, judge: Judge) -> float:
        """The number by which it is compared.

        Raises:
            ValueError: gold is asked of a prompt that is not of the synthetic world.
        """
        if judge == "reward":
            return self.score
        if self.gold is None:
            raise ValueError("the gold reward knows the synthetic world's prompts alone")
        return self.gold


@dataclass(frozen=True, slots=True)
class Asking:
    """``await Asking(policies, rewards, max_tokens=64, seed=1).replies(prompts, "before", n=4)``."""

    policies: Sequence[str]
    rewards: Sequence[str]
    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    """The run's: with the purpose and the prompt's id it makes each prompt's seed."""
    tls: Path | None = None

    async def replies(
        self,
        prompts: Sequence[Prompt],
        purpose: str,
        n: int = 1,
        *,
        temperature: float | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[list[Reply]]:
        """n judged replies of every prompt; ``progress`` hears how many more prompts are done.

        Raises:
            Unavailable: a server stayed away longer than PATIENCE_SECONDS.
        """
        admitted = asyncio.Semaphore(max(1, SAMPLES_IN_FLIGHT // n))
        heat = self.temperature if temperature is None else temperature
        async with (
            AsyncPolicyClient(self.policies, timeout=CALL_SECONDS, tls=self.tls) as policy,
            AsyncRewardClient(self.rewards, timeout=CALL_SECONDS, tls=self.tls) as reward,
        ):

            async def reply_to(prompt: Prompt) -> list[Reply]:
                seed = prompt_seed(self.seed, purpose, prompt.id)
                sampling = SamplingParams(max_tokens=self.max_tokens, n=n, temperature=heat, seed=seed)
                async with admitted:
                    made = await patiently(lambda: policy.generate(prompt.text, sampling))
                items = [
                    ScoreItem(prompt.text, one.text, cut_off=one.finish_reason is not FinishReason.EOS)
                    for one in made.completions
                ]
                scores = (await patiently(lambda: reward.score(items))).scores
                progress(1)
                return [
                    Reply(
                        one.text,
                        len(one.token_ids),
                        str(one.finish_reason),
                        made.model.version.step,
                        score.score,
                        gold_of(prompt.text, one.text),
                    )
                    for one, score in zip(made.completions, scores, strict=True)
                ]

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(reply_to(prompt)) for prompt in prompts]
            return [task.result() for task in tasks]

    async def step(self) -> int:
        """PPO step of the weights that the first policy server to answer serves now."""
        async with AsyncPolicyClient(self.policies, timeout=CALL_SECONDS, tls=self.tls) as policy:
            return (await patiently(policy.describe)).model.version.step


def gold_of(prompt: str, reply: str) -> float | None:
    """The hidden gold reward; None where the prompt is no request of the synthetic world."""
    try:
        return gold_reward(prompt, reply)
    except ValueError:
        return None


def prompt_seed(run_seed: int, purpose: str, prompt_id: str) -> int:
    """Below 2⁶³, and unlike any other prompt's or purpose's."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{purpose}/{prompt_id}".encode()).digest()[:8]) >> 1


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Makes a call again while its server is away: it is being restarted, or swaps weights."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await call()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
