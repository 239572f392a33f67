"""Best of n behind PolicyService.Generate: n samples are drawn for each that a caller gets, the reward servers choose.

Consumes   a caller's request, and the engine's whole samples.
Produces   for each sample that was asked for, one chunk: the best of n, whole.
Waits for  the n samples of a group, then for the reward servers' scores of them.
Unblocked  by them, or by the caller who goes.

The k samples of one request are k independent choices. Their log-probs and tokens are the model's own; the choice
itself strays at most log n − (n − 1)/n nats from it (Stiennon et al. 2020; Beirami et al. 2024).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lodestar import metrics
from lodestar.client import AsyncRewardClient
from lodestar.engine.limits import Limits
from lodestar.errors import InvalidArgument, Unavailable
from lodestar.evaluation import best_of_n
from lodestar.records import ChatMessage, FinishReason, GenerationChunk, SamplingParams, ScoreItem

SCORE_SECONDS = 120.0
"""Deadline of the reward servers' answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A caller's prompt: ``Asked((1, 5, 8), "the sky")``."""

    ids: tuple[int, ...]
    text: str | None = None
    """Rendered; None where token ids were sent."""
    messages: tuple[ChatMessage, ...] = ()
    """What the text was rendered from."""


class BestOf:
    """``BestOf(8, ["127.0.0.1:50061"], tokenizer, tokenizer_hash).chosen(asked, samples)``."""

    def __init__(
        self, n: int, rewards: Sequence[str], tokenizer: Any, tokenizer_hash: str, *, tls: Path | None = None
    ) -> None:
        self.n = n
        self._tokenizer = tokenizer
        self._tokenizer_hash = tokenizer_hash
        self._addresses, self._tls = rewards, tls
        self._client: AsyncRewardClient | None = None
        self._reads_ids: bool | None = None
        """Whether the reward has the policy's tokenizer; None before it was met."""

    def drawn(self, sampling: SamplingParams, limits: Limits) -> SamplingParams:
        """How to sample, for a caller who asked for ``sampling``. Greedy samples are all alike: one is drawn.

        Raises:
            InvalidArgument: more samples or tokens than the server draws for one request.
        """
        n = self.n_of(sampling)
        drawn, tokens = sampling.n * n, sampling.n * n * sampling.max_tokens
        price = f"{sampling.n} samples, each the best of {n}"
        if drawn > limits.samples:
            raise InvalidArgument(
                "sampling.n", f"{price}, are {drawn}; this server draws {limits.samples} at most: ask for fewer"
            )
        if tokens > limits.request_tokens:
            raise InvalidArgument(
                "sampling.n",
                f"{price}, may have {tokens} tokens; this server draws {limits.request_tokens} at most for one "
                "request: lower n or max_tokens",
            )
        return replace(sampling, n=drawn)

    def n_of(self, sampling: SamplingParams) -> int:
        """Samples drawn for each that was asked for."""
        return self.n if sampling.temperature > 0 else 1

    async def chosen(
        self, asked: Asked, n: int, samples: AsyncIterable[GenerationChunk]
    ) -> AsyncGenerator[GenerationChunk, None]:
        """The best of each n samples, as soon as it is known. ``samples`` come whole, a chunk each.

        Raises:
            Unavailable: no reward server answers.
            InvalidArgument: the reward refuses the prompt or a sample.
        """
        groups: dict[int, list[GenerationChunk]] = {}
        choices: list[asyncio.Task[GenerationChunk]] = []
        try:
            async for sample in samples:
                group = groups.setdefault(sample.sample_index // n, [])
                group.append(sample)
                if len(group) == n:
                    choices.append(asyncio.create_task(self._choose(asked, group, sample.sample_index // n)))
                for choice in [choice for choice in choices if choice.done()]:
                    choices.remove(choice)
                    yield choice.result()
            while choices:
                yield await choices.pop(0)
        finally:
            for choice in choices:
                choice.cancel()
            await asyncio.gather(*choices, return_exceptions=True)

    async def close(self) -> None:
        """Ends the connection to the reward servers."""
        if self._client is not None:
            await self._client.close()

    async def _choose(self, asked: Asked, group: Sequence[GenerationChunk], index: int) -> GenerationChunk:
        ordered = sorted(group, key=lambda sample: sample.sample_index)
        fit = [sample for sample in ordered if sample.finish_reason is not FinishReason.ERROR and _says(sample)]
        fit = fit or ordered[:1]
        began = time.monotonic()
        scores = await self._scores(asked, fit) if len(fit) > 1 else [0.0] * len(fit)
        metrics.BEST_OF_SECONDS.observe(time.monotonic() - began)
        (best,) = best_of_n([scores], [fit], len(fit))
        for sample in ordered:
            outcome = "chosen" if sample is best else "passed"
            metrics.BEST_OF_SAMPLES.labels(outcome).inc()
            metrics.BEST_OF_TOKENS.labels(outcome).inc(len(sample.token_ids))
        return replace(best, sample_index=index)

    async def _scores(self, asked: Asked, samples: Sequence[GenerationChunk]) -> list[float]:
        if self._client is None:
            self._client = AsyncRewardClient(self._addresses, timeout=SCORE_SECONDS, tls=self._tls)
        try:
            if self._reads_ids is None:
                theirs = (await self._client.describe()).model.tokenizer_hash
                self._reads_ids = theirs == self._tokenizer_hash
            items = [self._item(asked, sample) for sample in samples]
            answer = await self._client.score(items, tokenizer_hash=self._tokenizer_hash if self._reads_ids else "")
        except Unavailable as error:
            self._reads_ids = None  # another may stand there when it is back
            raise Unavailable(
                f"the reward that chooses the best of {self.n} samples does not answer: {error}"
            ) from None
        except InvalidArgument as error:
            raise InvalidArgument(
                "prompt", f"the reward that chooses the best of {self.n} samples refuses one: {error}"
            ) from None
        return [score.score for score in answer.scores]

    def _item(self, asked: Asked, sample: GenerationChunk) -> ScoreItem:
        if self._reads_ids:
            return ScoreItem(asked.ids, sample.token_ids)
        text = asked.text if asked.text is not None else self._spelled(asked.ids)
        return ScoreItem(text, sample.text, sample.finish_reason is FinishReason.LENGTH, messages=asked.messages)

    def _spelled(self, ids: Sequence[int]) -> str:
        bare = ids[1:] if len(ids) > 1 and ids[0] == self._tokenizer.bos_token_id else ids
        return str(self._tokenizer.decode(list(bare), clean_up_tokenization_spaces=False))


def _says(sample: GenerationChunk) -> bool:
    """Whether there is anything to score: a response that was cut off before its first word is nothing."""
    return bool(sample.text) or sample.finish_reason is not FinishReason.LENGTH
