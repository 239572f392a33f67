"""What is asked of a language model, what it answers, and the port before every place where one may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lodestar.records import ChatMessage


@dataclass(frozen=True, slots=True)
class Ask:
    """``Ask((ChatMessage("user", "Which is better?"),), max_tokens=4, candidates=20)``."""

    prompt: str | tuple[ChatMessage, ...]
    """Text that goes on, or a chat for the model's own template."""
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    seed: int | None = None
    candidates: int = 0
    """Most likely tokens to be told at each position; 0: no log-probs."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: ``Token(" A", {" A": -0.1, " B": -2.4})``."""

    text: str
    candidates: Mapping[str, float]
    """The most likely tokens there → log-prob in nats."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``Answer("A", ended=True, prompt_tokens=120, completion_tokens=2)``."""

    text: str
    ended: bool
    """By itself; False where max_tokens cut it off."""
    prompt_tokens: int | None
    """None where the server does not tell."""
    completion_tokens: int | None
    tokens: tuple[Token, ...] = ()
    """Empty where no log-probs were asked for."""


class LanguageModel(Protocol):
    """Answers; many calls may be in flight."""

    async def identity(self) -> str:
        """What answers, as a file's name: two that may answer differently have different ones."""

    async def ask(self, ask: Ask) -> Answer:
        """One answer.

        Raises:
            InvalidArgument: this one cannot be answered (it is too long for the context); others may be.
            LodestarError: the model cannot be asked at all; says what to do.
        """

    async def close(self) -> None:
        """Ends its connections."""
