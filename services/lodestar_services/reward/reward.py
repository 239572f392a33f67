"""The reward model's scores, batched over the calls that are waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lodestar import metrics
from lodestar.config import RewardConfig, RunConfig
from lodestar.data.rows import encode_rows
from lodestar.errors import LodestarError, NonFinite
from lodestar.model.loading import load_scalar_model
from lodestar.model.packed import PackedBatch, sequence_scores
from lodestar.records import Score, Scored, ScoreItem
from lodestar.rpc.batching import ComputeThread, TokenBatcher
from lodestar_services.frozen import FrozenModel, check_count


class Reward:
    """``await load()``, then ``await score(…)``."""

    def __init__(self, path: str, config: RunConfig) -> None:
        self._path = path
        self._config = config
        self._deterministic = config.deterministic
        section: RewardConfig = config.reward
        self._compute = ComputeThread("reward", threads=1 if config.deterministic else section.threads)
        self._tokenizing = ComputeThread("tokenizer")  # beside a forward pass, and never in two threads at once
        self._batcher = TokenBatcher[Scored, Score](
            self._compute,
            self._answer,
            tokens_of=lambda scored: len(scored.token_ids),
            batch_tokens=section.batch_tokens,
            wait_seconds=section.batch_wait_ms / 1000,
            max_queued_tokens=section.max_queued_tokens,
        )
        self.frozen: FrozenModel

    async def load(self) -> None:
        """Loads the model on its thread and runs it once."""
        self.frozen = await self._compute.run(FrozenModel.load, load_scalar_model, self._path, self._config)
        eos = self.frozen.tokenizer.eos_token_id
        await self._compute.run(self._answer, [Scored((eos, eos), 1)])

    async def score(self, items: Sequence[ScoreItem]) -> list[Score]:
        """One score per item, read at its last token.

        Raises:
            InvalidArgument: an empty call or completion, a sequence beyond the context, an id that is no token.
            ResourceExhausted: too much is queued.
            NonFinite: the model is broken.
        """
        check_count(items, "items")
        sequences = await self._tokenizing.run(self._encode, items)
        for i, (item, scored) in enumerate(zip(items, sequences, strict=True)):
            self._check(item, scored, f"items[{i}]")
        metrics.TOKENS_IN.inc(sum(len(scored.token_ids) for scored in sequences))
        return await self._batcher.submit(sequences)

    def _encode(self, items: Sequence[ScoreItem]) -> list[Scored]:
        sequences: dict[int, Scored] = {}
        for cut_off in (False, True):
            texts = {
                i: (item.prompt, item.completion)
                for i, item in enumerate(items)
                if isinstance(item.prompt, str) and isinstance(item.completion, str) and item.cut_off == cut_off
            }
            prompts, completions = zip(*texts.values(), strict=True) if texts else ((), ())
            rows = encode_rows(self.frozen.tokenizer, prompts, completions, ended=not cut_off)
            sequences.update(zip(texts, rows, strict=True))
        for i, item in enumerate(items):
            if not isinstance(item.prompt, str) and not isinstance(item.completion, str):
                sequences[i] = Scored(item.prompt + item.completion, prompt_tokens=len(item.prompt))
        return [sequences[i] for i in range(len(items))]

    def _check(self, item: ScoreItem, scored: Scored, field: str) -> None:
        form = "text" if isinstance(item.prompt, str) else "tokens"
        self.frozen.check_tokens(scored.token_ids[: scored.prompt_tokens], f"{field}.prompt_{form}")
        self.frozen.check_tokens(scored.token_ids[scored.prompt_tokens :], f"{field}.completion_{form}")
        self.frozen.check_tokens(scored.token_ids, field)

    @torch.inference_mode()
    def _answer(self, sequences: Sequence[Scored]) -> list[Score | LodestarError]:
        batch = PackedBatch.pack(
            [scored.token_ids for scored in sequences],
            [scored.prompt_tokens for scored in sequences],
            device=self.frozen.device,
            per_sequence=self._deterministic,
        )
        return [_checked(score) for score in sequence_scores(self.frozen.model, batch).float().tolist()]


def _checked(score: float) -> Score | NonFinite:
    if not math.isfinite(score):
        return NonFinite(f"the reward model gave the score {score}: its weights are broken")
    return Score(score, mean=score)
