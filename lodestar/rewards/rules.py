"""Rewards by rule: what can be read off a completion without a model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lodestar.config import SourceConfig
from lodestar.errors import ConfigError
from lodestar.records import ChatMessage


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and its completion as text: ``Exchange("what color is the sky ?", "it is blue .")``."""

    prompt: str
    completion: str
    cut_off: bool = False
    """It reached its token limit and did not end by itself."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the prompt's row."""
    messages: tuple[ChatMessage, ...] = ()
    """What the prompt was rendered from, where the policy has another tokenizer than the model that reads it."""


Rule = Callable[[Exchange], float]


def rule_of(source: SourceConfig) -> Rule:
    """The rule that a source names.

    Raises:
        ConfigError: its pattern is no regular expression.
    """
    if source.rule == "ended":
        return lambda one: float(not one.cut_off)
    if source.rule == "length":
        words = source.words
        assert words is not None, "the configuration requires words"
        return lambda one: -float(max(0, len(one.completion.split()) - words))
    if source.rule == "pattern":
        assert source.pattern is not None, "the configuration requires pattern"
        try:
            expression = re.compile(source.pattern)
        except re.error as error:
            raise ConfigError(f"reward.sources {source.name}.pattern", f"is no regular expression: {error}") from error
        return lambda one: float(expression.search(one.completion) is not None)
    return lambda one: -repetition(one.completion)


def repetition(text: str, length: int = 3) -> float:
    """Share of runs of ``length`` words that were said before, 0 … 1 (rep-n of Welleck et al. 2020); 0 if too short."""
    words = text.split()
    runs = list(zip(*(itertools.islice(words, start, None) for start in range(length)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
