"""What the engine works on: a request, its samples as sequences, and what one step computes of them."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from lodestar.fair import Flow
from lodestar.records import FinishReason, SamplingParams, TokenCandidate, WeightVersion


@dataclass(slots=True, eq=False)
class Request:
    """One prompt and its n samples. Times are of ``time.monotonic``."""

    id: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    priority: float = 0.0
    """Seconds of arrival time that others are ahead by; 0 is served first, and nobody waits for ever."""
    flow: Flow = field(default_factory=Flow)
    """Whose it is: training's, or which caller's."""
    hashes: Tokens[bytes] = ()
    """Of the prompt's full blocks."""
    hidden: int = 0
    """Tokens of the prompt that its sender did not send: a conditioned model's control token."""
    arrived: float = field(default_factory=time.monotonic)
    streamed: bool = True
    """Whether somebody wants to hear of every token."""
    sequences: list[Sequence] = field(default_factory=list)
    unfinished: int = 0
    """Samples without a finish_reason."""
    started: bool = False
    """Whether a sample has tokens already, so that the others belong to the same weights."""
    leader: Sequence | None = None
    """The sample that computes the prompt for the others."""

    @property
    def order(self) -> tuple[float, int]:
        """Who comes first; total, so that equal arrivals keep their order."""
        return self.arrived + self.priority, self.id


@dataclass(slots=True, eq=False)
class Sequence:
    """One sample of a request: its tokens, and how far their keys and values are computed."""

    id: int
    request: Request
    index: int
    """Which of the request's samples, 0 … n − 1."""
    tokens: list[int]
    """Prompt and response."""
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    logprobs: list[float] = field(default_factory=list)
    """Per response token: log softmax(logits / temperature)."""
    processed_logprobs: list[float] = field(default_factory=list)
    """Per response token: of the distribution sampled from."""
    top_logprobs: list[tuple[TokenCandidate, ...]] = field(default_factory=list)
    versions: list[WeightVersion] = field(default_factory=list)
    """Per response token: the weights that made it."""
    finish_reason: FinishReason | None = None
    error: str = ""
    cached_version: WeightVersion | None = None
    """Weights behind the keys and values; older than the engine's when it swapped in mid-sequence."""
    running: bool = False
    """Whether it has room in the cache."""
    last_token_at: float = 0.0

    @property
    def order(self) -> tuple[float, int, int]:
        """Place in the line: the request's, then the sample's."""
        return (*self.request.order, self.index)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def response(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[self.prompt_tokens :]

    @property
    def prefill_target(self) -> int:
        """Tokens computed before the next one can be sampled: all but the last, which is the decode row."""
        return len(self.tokens) - 1

    @property
    def longest(self) -> int:
        """Tokens it may grow to."""
        return self.prompt_tokens + self.request.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions ``start … end − 1`` of a sequence, computed in one step."""

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: sequences that get a token, and prompt chunks; a sequence may be in both."""

    decode: list[Sequence]
    chunks: list[Chunk]

    def __bool__(self) -> bool:
        return bool(self.decode or self.chunks)
