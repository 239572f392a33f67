"""Tokens of one answer: each prompt once, whatever the number of its samples."""

from __future__ import annotations

from typing import Any

from lodestar import metrics
from lodestar.records import GenerationChunk


class Usage:
    """``usage.count(index, chunk)`` for every chunk, then ``usage.whole()``."""

    def __init__(self, samples: int = 1) -> None:
        self.samples = samples
        """Of each prompt."""
        self.completion_tokens = 0
        self._prompts: dict[int, int] = {}

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(self._prompts.values())

    def count(self, index: int, chunk: GenerationChunk) -> None:
        """A chunk of a choice."""
        self._prompts[index // self.samples] = chunk.prompt_tokens
        self.completion_tokens += len(chunk.token_ids)

    def prompt(self, index: int, tokens: int) -> None:
        """A choice's prompt, where nothing else says it."""
        self._prompts[index // self.samples] = tokens

    def whole(self) -> dict[str, Any]:
        """As OpenAI names them."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def export(self) -> None:
        """Adds them to this process's metrics."""
        metrics.GATEWAY_TOKENS.labels("prompt").inc(self.prompt_tokens)
        metrics.GATEWAY_TOKENS.labels("completion").inc(self.completion_tokens)
