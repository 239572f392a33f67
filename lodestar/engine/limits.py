"""Refuses requests that cannot or must not be served, naming the field."""

from __future__ import annotations

import math
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from lodestar.errors import InvalidArgument, ResourceExhausted
from lodestar.records import Purpose, SamplingParams

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server can take: ``Limits(4096, context_tokens=1024, request_tokens=65_536, samples=256)``."""

    vocab_size: int
    """Token ids that have text are below it."""
    context_tokens: int
    """Prompt + response of one sample."""
    request_tokens: int
    """n × max_tokens of one request."""
    samples: int
    """n of one request."""

    def check(self, prompt_ids: Tokens[int], sampling: SamplingParams, purpose: Purpose) -> None:
        """
        Raises:
            InvalidArgument: a field is out of range, or training asks for a distribution that PPO does not assume.
        """
        self._check_prompt(prompt_ids)
        self._check_lengths(len(prompt_ids), sampling)
        self._check_distribution(sampling)
        self._check_stops(sampling)
        if purpose is Purpose.TRAINING:
            check_training(sampling)

    def _check_prompt(self, prompt_ids: Tokens[int]) -> None:
        _require(len(prompt_ids) > 0, "prompt", "is empty; send at least one token")
        self.check_ids("prompt.tokens", prompt_ids)

    def _check_lengths(self, prompt_tokens: int, sampling: SamplingParams) -> None:
        _require(sampling.max_tokens >= 1, "sampling.max_tokens", f"must be at least 1, got {sampling.max_tokens}")
        _require(1 <= sampling.n <= self.samples, "sampling.n", f"must be 1 … {self.samples}, got {sampling.n}")
        _require(
            prompt_tokens + sampling.max_tokens <= self.context_tokens,
            "sampling.max_tokens",
            f"{prompt_tokens} prompt tokens + {sampling.max_tokens} exceed the context of {self.context_tokens} tokens",
        )
        _require(
            sampling.n * sampling.max_tokens <= self.request_tokens,
            "sampling.n",
            f"n × max_tokens is {sampling.n * sampling.max_tokens}, beyond the limit of {self.request_tokens}",
        )
        _require(
            0 <= sampling.min_tokens <= sampling.max_tokens,
            "sampling.min_tokens",
            f"must be 0 … max_tokens ({sampling.max_tokens}), got {sampling.min_tokens}",
        )

    def _check_distribution(self, sampling: SamplingParams) -> None:
        _require(
            0 <= sampling.temperature <= MAX_TEMPERATURE,
            "sampling.temperature",
            f"must be 0 … {MAX_TEMPERATURE:g}, got {sampling.temperature}",
        )
        _require(
            sampling.temperature == 0 or sampling.temperature >= 1e-3,
            "sampling.temperature",
            f"{sampling.temperature} overflows the logits; use 0 for greedy or at least 0.001",
        )
        _require(0 < sampling.top_p <= 1, "sampling.top_p", f"must be in (0, 1], got {sampling.top_p}")
        _require(sampling.top_k >= 0, "sampling.top_k", f"must be 0 (off) or more, got {sampling.top_k}")
        _require(0 <= sampling.min_p < 1, "sampling.min_p", f"must be in [0, 1), got {sampling.min_p}")
        _require(
            0 <= sampling.top_logprobs <= MAX_TOP_LOGPROBS,
            "sampling.top_logprobs",
            f"must be 0 … {MAX_TOP_LOGPROBS}, got {sampling.top_logprobs}",
        )
        _require(
            sampling.seed is None or 0 <= sampling.seed < 2**64,
            "sampling.seed",
            f"must be 0 … 2⁶⁴ − 1, got {sampling.seed}",
        )
        bias = sampling.logit_bias
        _require(
            len(bias) <= MAX_LOGIT_BIAS, "sampling.logit_bias", f"has {len(bias)} entries, at most {MAX_LOGIT_BIAS}"
        )
        self.check_ids("sampling.logit_bias", list(bias))
        for token, value in bias.items():
            _require(math.isfinite(value) and abs(value) <= 1e4, f"sampling.logit_bias[{token}]", f"is {value}")

    def _check_stops(self, sampling: SamplingParams) -> None:
        for name, stops in (("stop", sampling.stop), ("stop_token_ids", sampling.stop_token_ids)):
            _require(len(stops) <= MAX_STOPS, f"sampling.{name}", f"has {len(stops)} entries, at most {MAX_STOPS}")
        for i, stop in enumerate(sampling.stop):
            _require(isinstance(stop, str), f"sampling.stop[{i}]", f"must be a string, got {type(stop).__name__}")
            _require(
                1 <= len(stop) <= MAX_STOP_CHARACTERS,
                f"sampling.stop[{i}]",
                f"must have 1 … {MAX_STOP_CHARACTERS} characters, got {len(stop)}",
            )
        self.check_ids("sampling.stop_token_ids", sampling.stop_token_ids)

    def check_ids(self, field: str, ids: Tokens[int]) -> None:
        """Raises InvalidArgument when an id is no token of the model."""
        for i, token in enumerate(ids):
            if not (isinstance(token, int) and 0 <= token < self.vocab_size):
                raise InvalidArgument(
                    f"{field}[{i}]", f"token id {token} is outside the vocabulary (0 … {self.vocab_size - 1})"
                )


def check_training(sampling: SamplingParams) -> None:
    """
    Raises:
        InvalidArgument: the tokens would not come from softmax(logits / temperature), whose log-probs PPO uses.
    """
    why = "training samples must come from softmax(logits / temperature); remove it or send purpose SERVING"
    _require(sampling.temperature > 0, "sampling.temperature", f"is 0: {why}")
    _require(sampling.top_p == 1, "sampling.top_p", f"is {sampling.top_p}: {why}")
    _require(sampling.top_k == 0, "sampling.top_k", f"is {sampling.top_k}: {why}")
    _require(sampling.min_p == 0, "sampling.min_p", f"is {sampling.min_p}: {why}")
    _require(sampling.min_tokens == 0, "sampling.min_tokens", f"is {sampling.min_tokens}: {why}")
    _require(not sampling.logit_bias, "sampling.logit_bias", f"is set: {why}")


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise InvalidArgument(field, message)


def check_room(waiting: int, samples: int, max_waiting: int) -> None:
    """
    Raises:
        ResourceExhausted: the line is too long for so many more samples.
    """
    if waiting + samples > max_waiting:
        raise ResourceExhausted(
            f"{waiting} sequences wait and at most {max_waiting} may: ask again later, for fewer samples, "
            "or of another replica"
        )
