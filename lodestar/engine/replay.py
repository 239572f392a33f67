"""Log-probs of given completions through the serving path itself: prefill, then decode steps with the known tokens."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from itertools import count
from typing import Any

import torch
from lodestar_kernels.logprob import logprobs_from_logits

from lodestar.engine.cache import KVCache
from lodestar.engine.runner import ModelRunner
from lodestar.engine.sequence import Chunk, Plan, Request, Sequence
from lodestar.errors import ResourceExhausted
from lodestar.records import SamplingParams, Scored


def replay(
    runner: ModelRunner, cache: KVCache, completions: Tokens[Scored], ids: count[int], device: torch.device
) -> list[list[float]]:
    """Log-probs of every completion's tokens; all of them are computed together, as served samples are.

    The cache has room for them, and a slot for each.
    """
    sequences = [_sequence(scored, ids) for scored in completions]
    logprobs: list[list[float]] = [[] for _ in completions]
    opened = []
    try:
        for sequence, scored in zip(sequences, completions, strict=True):
            cache.open(sequence, len(scored.token_ids), ())
            opened.append(sequence)
        chunks = [Chunk(one, 0, one.prompt_tokens - 1) for one in sequences if one.prompt_tokens > 1]
        of = {sequence.id: i for i, sequence in enumerate(sequences)}
        left = [*sequences]
        while left := [one for one in left if len(one.tokens) < len(completions[of[one.id]].token_ids)]:
            order = cache.order(left)
            logits_BV = runner.logits(Plan(order, chunks))[: len(order)]
            ends = [len(sequence.tokens) for sequence in order]
            targets = [completions[of[one.id]].token_ids[end] for one, end in zip(order, ends, strict=True)]
            values = logprobs_from_logits(logits_BV, torch.tensor(targets, device=device)).logprobs_T.tolist()
            for sequence, end, target, value in zip(order, ends, targets, values, strict=True):
                logprobs[of[sequence.id]].append(value)
                sequence.computed = end
                sequence.tokens.append(target)
            chunks = []
    finally:
        for sequence in opened:
            cache.close(sequence)
    return logprobs


def _sequence(scored: Scored, ids: count[int]) -> Sequence:
    known = scored.prompt_tokens
    request = Request(next(ids), scored.token_ids[:known], SamplingParams(len(scored.token_ids) - known), seed=0)
    return Sequence(next(ids), request, 0, list(scored.token_ids[:known]))


class Standby:
    """A model with new weights beside the one that serves, which it replaces as it stands: see Engine.adopt."""

    def __init__(self, model: Any, runner: ModelRunner, cache: KVCache, device: torch.device) -> None:
        """``runner`` is over the serving cache, ``cache`` another one for :meth:`replay`."""
        self.model = model
        self.runner = runner
        self._cache = cache
        self._device = device

    def replay(self, completions: Tokens[Scored]) -> list[list[float]]:
        """Log-probs of completions through what will serve; from any thread, beside steps of what serves.

        Raises:
            ResourceExhausted: they are more tokens than the cache may hold.
        """
        lengths = [len(scored.token_ids) for scored in completions]
        tokens, longest = sum(lengths), max(lengths, default=0)
        if longest > self._cache.capacity or not self._cache.has_room(tokens, len(lengths)):  # each may begin a block
            raise ResourceExhausted(f"completions of {tokens} tokens cannot be replayed in this KV cache")
        return replay(self.runner.over(self._cache), self._cache, completions, count(), self._device)
