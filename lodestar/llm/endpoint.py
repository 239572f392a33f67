"""A language model behind OpenAI's API: hosted, or any server that speaks it (our gateway does), by OpenAI's own SDK.

The SDK waits and tries again on 408, 409, 429, 5xx and lost connections, and honours Retry-After.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lodestar.errors import (
    ConfigError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LodestarError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from lodestar.llm.options import ReachOptions
from lodestar.llm.port import Answer, Ask, Token

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion
    from openai.types.completion import Completion

MOST_OF_TEXT = 5
"""Candidates that the older API of plain text gives at most, by its definition."""
LONGER = ("context_length_exceeded", "string_above_max_length")
"""Codes of a refusal that concerns one request alone."""


class Endpoint:
    """``Endpoint(options, "label.judge")``; ``key`` is where its options stand, for errors."""

    def __init__(self, options: ReachOptions, key: str) -> None:
        """
        Raises:
            ConfigError: the SDK is not installed, or the token cannot be read.
        """
        self._options = options
        self._key = key
        self._client = _client(options, key)

    async def identity(self) -> str:
        """Of address and model's id: what stands behind them may change, which nobody tells."""
        return "url-" + hashlib.sha256(f"{self._options.url}\n{self._options.name}".encode()).hexdigest()[:32]

    async def ask(self, ask: Ask) -> Answer:
        """See LanguageModel."""
        from openai import APIError

        told: dict[str, Any] = {"model": self._options.name, "temperature": ask.temperature}
        if ask.seed is not None:
            told["seed"] = ask.seed
        try:
            if isinstance(ask.prompt, str):
                told |= {"prompt": ask.prompt, "max_tokens": ask.max_tokens}
                if ask.candidates:
                    told["logprobs"] = min(ask.candidates, MOST_OF_TEXT)
                return _of_text(await self._client.completions.create(**told))
            told["messages"] = [{"role": turn.role, "content": turn.content} for turn in ask.prompt]
            told["max_completion_tokens"] = ask.max_tokens
            if ask.candidates:
                told |= {"logprobs": True, "top_logprobs": ask.candidates}
            return _of_chat(await self._client.chat.completions.create(**told))
        except APIError as error:
            raise self._said(error) from error

    async def close(self) -> None:
        """See LanguageModel."""
        await self._client.close()

    def _said(self, error: Exception) -> LodestarError:
        """The SDK's error as one of ours, with what to do."""
        import openai

        options, where = self._options, f"{self._key}: {self._options.url}"
        tries = f" (tried {options.retries + 1} times)" if options.retries else ""
        kept = "answers so far are kept: --resume goes on"
        match error:
            case openai.APITimeoutError():
                return DeadlineExceeded(
                    f"{where} did not answer within {options.timeout_seconds:g} s{tries}; raise "
                    f"{self._key}.timeout_seconds, or lower in_flight; {kept}"
                )
            case openai.APIConnectionError():
                return Unavailable(f"{where} cannot be reached{tries}: {_cause(error)}; {kept}")
            case openai.AuthenticationError():
                return Unauthenticated(f"{where} does not know us: {error.message}; set {self._key}.token_file")
            case openai.PermissionDeniedError():
                return PermissionDenied(f"{where} does not let us in: {error.message}")
            case openai.RateLimitError():
                return ResourceExhausted(
                    f"{where} is asked too often{tries}: {error.message}; set {self._key}.requests_per_minute; {kept}"
                )
            case openai.BadRequestError(code=code) if code in LONGER:
                return InvalidArgument("", error.message)
            case openai.APIStatusError(status_code=status) if status < 500:
                return FailedPrecondition(f"{where} refuses what is asked ({status}): {error.message}")
            case _:
                return Unavailable(f"{where} failed{tries}: {error}; {kept}")


def _client(options: ReachOptions, key: str) -> AsyncOpenAI:
    try:
        from openai import AsyncOpenAI
    except ImportError:
        raise ConfigError(f"{key}.url", "needs OpenAI's SDK: pip install 'lodestar-rlhf[openai]'") from None
    for transport in ("httpx", "httpx2"):  # which one depends on the SDK's version; each tells of every request
        logging.getLogger(transport).setLevel(logging.WARNING)
    return AsyncOpenAI(
        base_url=options.url,
        api_key=options.token(key) or "none",
        timeout=options.timeout_seconds,
        max_retries=options.retries,
    )


def _cause(error: BaseException) -> str:
    """The innermost reason, which says more than "Connection error."."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return str(error) or type(error).__name__


def _of_chat(made: ChatCompletion) -> Answer:
    (choice,) = made.choices
    content = choice.logprobs.content if choice.logprobs is not None else None
    tokens = [Token(one.token, {top.token: top.logprob for top in one.top_logprobs}) for one in content or ()]
    return _answer(choice.message.content or "", choice.finish_reason, made.usage, tokens)


def _of_text(made: Completion) -> Answer:
    (choice,) = made.choices
    tokens: list[Token] = []
    if choice.logprobs is not None and choice.logprobs.tokens is not None:
        candidates: Sequence[Mapping[str, float]] = choice.logprobs.top_logprobs or [{}] * len(choice.logprobs.tokens)
        tokens = [Token(text, at) for text, at in zip(choice.logprobs.tokens, candidates, strict=True)]
    return _answer(choice.text, choice.finish_reason, made.usage, tokens)


def _answer(text: str, finish: str, usage: Any, tokens: Sequence[Token]) -> Answer:
    asked, answered = (None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
    return Answer(text, finish == "stop", asked, answered, tuple(tokens))
