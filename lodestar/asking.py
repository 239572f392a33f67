"""Replies of running policy servers, scored by reward servers, and by the synthetic world's gold where it is known.

Prompts go out as text with a seed of their own each, so that asking the same weights again gets the same samples. All
calls are ordinary callers' traffic over gRPC: many in flight, tried again while a server restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from lodestar.client import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from lodestar.config.services import PolicyConfig
from lodestar.data.world import gold_reward
from lodestar.errors import Unavailable, first_of
from lodestar.records import Completion, FinishReason, Generation, Prompt, SamplingParams, Score, Scored, ScoreItem
from lodestar.rivals import Take

T = TypeVar("T")
Judge = Literal["gold", "reward"]
Progress = Callable[[int], object]
"""Hears how many more prompts are done."""
PATIENCE_SECONDS = 120.0
"""How long a call is tried again while its server is away."""
CALL_SECONDS = 600.0
SAMPLES_IN_FLIGHT = 512
"""To all policy servers: twice what one decodes at once by default."""
ROWS_PER_CALL = 128
"""Replies whose scores or log-probs one call asks for."""


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
    aspects: Mapping[str, float] = field(default_factory=dict)
    """What a score of several parts is made of, before weights: helpful, harmless …"""

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


def admitted(section: PolicyConfig, *, picks: bool) -> int:
    """Samples that may be asked of policy servers at once without one being refused: each of a server that ``picks``
    the best of n is n in its queue."""
    drawn = section.best_of if picks else 1
    return max(1, min(SAMPLES_IN_FLIGHT, section.max_waiting) // drawn)


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
    in_flight: int = SAMPLES_IN_FLIGHT
    """Samples that are asked for at once: see admitted."""
    aspects: Mapping[str, str] = field(default_factory=dict)
    """Name → head of a score (lodestar.config.rewards.aspects_of)."""

    async def replies(
        self, prompts: Sequence[Prompt], purpose: str, n: int = 1, *, progress: Progress = lambda _: None
    ) -> list[list[Reply]]:
        """n judged replies of every prompt.

        Raises:
            Unavailable: a server stayed away longer than PATIENCE_SECONDS.
        """
        return await self.judged(prompts, await self.generations(prompts, purpose, n, self.temperature, progress))

    async def generations(
        self, prompts: Sequence[Prompt], purpose: str, n: int, temperature: float, progress: Progress = lambda _: None
    ) -> list[Generation]:
        """n completions of every prompt with their log-probs; temperature 0 is greedy. Raises as replies."""
        admitted = asyncio.Semaphore(max(1, self.in_flight // n))
        async with AsyncPolicyClient(self.policies, timeout=CALL_SECONDS, tls=self.tls) as policy:

            async def generation_of(prompt: Prompt) -> Generation:
                seed = prompt_seed(self.seed, purpose, prompt.id)
                told = SamplingParams(self.max_tokens, n=n, temperature=temperature, seed=seed, logprobs=True)
                async with admitted:
                    made = await patiently(partial(policy.generate, prompt.text, told))
                progress(1)
                return made

            return await together(map(generation_of, prompts))

    async def judged(self, prompts: Sequence[Prompt], made: Sequence[Generation]) -> list[list[Reply]]:
        """Completions with what is thought of them. Raises as replies."""
        items = [
            ScoreItem(prompt.text, one.text, one.finish_reason is not FinishReason.EOS, prompt.columns, prompt.messages)
            for prompt, generation in zip(prompts, made, strict=True)
            for one in generation.completions
        ]
        scores = iter(await self._scored(items))
        return [
            [
                Reply(
                    one.text,
                    len(one.token_ids),
                    str(one.finish_reason),
                    generation.model.version.step,
                    (score := next(scores)).score,
                    gold_of(prompt.text, one.text),
                    {name: score.heads[head] for name, head in self.aspects.items()},
                )
                for one in generation.completions
            ]
            for prompt, generation in zip(prompts, made, strict=True)
        ]

    async def scores(self, items: Sequence[ScoreItem]) -> list[float]:
        """The reward's scores. Raises as replies."""
        return [one.score for one in await self._scored(items)]

    async def _scored(self, items: Sequence[ScoreItem]) -> list[Score]:
        async with AsyncRewardClient(self.rewards, timeout=CALL_SECONDS, tls=self.tls) as reward:
            found: list[Score] = []
            for first in range(0, len(items), ROWS_PER_CALL):
                answer = await patiently(partial(reward.score, items[first : first + ROWS_PER_CALL]))
                found += answer.scores
            return found

    async def takes(
        self,
        prompts: Sequence[Prompt],
        made: Sequence[Generation],
        replies: Sequence[Sequence[Reply]],
        *,
        references: Sequence[str],
        judge: Judge,
        greedy: bool,
    ) -> list[list[Take]]:
        """Generations and their judged replies as lodestar.rivals plays them; ``references`` serve the start model.

        Prompts need token_ids. A greedy choice is certain: log 1, whatever the model says of it.

        Raises:
            Unavailable: as replies.
        """
        completions = [one.completions for one in made]
        likely = iter(await self._logprobs(prompts, completions, references))
        return [
            [
                Take(
                    judgement=reply.judged_by(judge),
                    score=reply.score,
                    logprob=0.0 if greedy else math.fsum(one.logprobs),
                    start_logprob=next(likely),
                    tokens=reply.tokens,
                )
                for one, reply in zip(several, judged, strict=True)
            ]
            for several, judged in zip(completions, replies, strict=True)
        ]

    async def _logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], references: Sequence[str]
    ) -> list[float]:
        """Nats of every completion under the reference model, one after another."""
        rows = [
            Scored((*prompt.token_ids, *completion.token_ids), len(prompt.token_ids))
            for prompt, several in zip(prompts, completions, strict=True)
            for completion in several
        ]
        async with AsyncReferenceClient(references, timeout=CALL_SECONDS, tls=self.tls) as reference:
            found: list[float] = []
            for first in range(0, len(rows), ROWS_PER_CALL):
                answer = await patiently(partial(reference.logprobs, rows[first : first + ROWS_PER_CALL]))
                found += [math.fsum(one.logprobs) for one in answer.sequences]
            return found

    async def step(self) -> int:
        """PPO step of the weights that the first policy server to answer serves now."""
        async with AsyncPolicyClient(self.policies, timeout=CALL_SECONDS, tls=self.tls) as policy:
            return (await patiently(policy.describe)).model.version.step


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each call returns, all of them at work at once; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failed:
        raise first_of(failed) from failed
    return [task.result() for task in tasks]


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
