"""What callers send: OpenAI's bodies, checked in full before anything is asked of a policy server.

A parameter that is not honoured is refused by name; a value of it that asks for nothing (``presence_penalty: 0``) is
taken. top_k, min_p, min_tokens, stop_token_ids and ignore_eos are not OpenAI's: the engine honours them, and SDKs send
them as ``extra_body``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lodestar.records import ChatMessage, SamplingParams
from lodestar_services.gateway.errors import ApiError, unsupported

DEFAULT_TOKENS = 16
"""Of a completion whose request names no max_tokens: OpenAI's. A chat without one has what is left of the context."""
MAX_TOP_LOGPROBS = 20

_COMMON: dict[str, Sequence[Any]] = {
    "presence_penalty": [0],
    "frequency_penalty": [0],
    "service_tier": ["auto", "default"],
    "store": [False],
    "metadata": [{}],
}
NOT_HONOURED: dict[str, dict[str, Sequence[Any]]] = {
    "chat": _COMMON
    | {
        "tools": [[]],
        "tool_choice": ["none"],
        "parallel_tool_calls": [],
        "functions": [[]],
        "function_call": ["none"],
        "response_format": [{"type": "text"}],
        "modalities": [["text"]],
        "audio": [],
        "prediction": [],
        "reasoning_effort": ["none"],
        "verbosity": [],
        "web_search_options": [],
        "prompt_cache_key": [],
        "prompt_cache_retention": [],
    },
    "completion": _COMMON | {"suffix": [""]},
}
"""OpenAI's parameters that no policy server honours, with the values that ask for nothing (null is one always)."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """Of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Request(_Body):
    """What both kinds share."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    logit_bias: dict[Annotated[int, Field(ge=0, strict=False)], float] | None = None
    user: str | None = None
    """The caller's name for its own user. It is not kept; SDKs and chat pages send it unasked."""
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="after")
    def _options_are_a_streams(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is for stream: true alone")
        return self

    @property
    def samples(self) -> int:
        """Of each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int, *, top_logprobs: int | None) -> SamplingParams:
        """How to sample; ``top_logprobs`` None: no log-probs at all."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens,
            n=self.samples,
            min_tokens=self.min_tokens or 0,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed % 2**64,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logit_bias=self.logit_bias or {},
            logprobs=top_logprobs is not None,
            top_logprobs=top_logprobs or 0,
            ignore_eos=bool(self.ignore_eos),
        )


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def turn(self) -> ChatMessage:
        """For the model's template; a developer's words are the system's."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens: is the older name of max_completion_tokens; send one of them")
        if self.max_tokens == 0:
            raise ValueError("max_tokens: must be at least 1")
        return self

    @property
    def length(self) -> int | None:
        """New tokens per sample at most; None: what is left of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def turns(self) -> tuple[ChatMessage, ...]:
        """The chat."""
        return tuple(message.turn for message in self.messages)

    @property
    def candidates(self) -> int | None:
        """Most likely tokens per position; None: no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.best_of not in (None, self.samples):
            raise ValueError("best_of: other than n is not supported")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: must be at least 1, or 0 with echo: true")
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompt: is empty; send text or at least one token")
        return self

    @property
    def length(self) -> int:
        """New tokens per sample at most."""
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]


R = TypeVar("R", bound=Request)


def parsed(kind: type[R], body: Any) -> R:
    """The request that a JSON body holds.

    Raises:
        ApiError: it cannot be used; ``param`` names what is wrong.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    listed = NOT_HONOURED["chat" if kind is ChatRequest else "completion"]
    for name in listed.keys() & body.keys():
        if body[name] is not None and not any(_same(body[name], neutral) for neutral in listed[name]):
            raise unsupported(name, "is not supported by this server; leave it out")
    try:
        return kind.model_validate({name: value for name, value in body.items() if name not in listed})
    except ValidationError as error:
        raise _refusal(error) from None


def _same(given: Any, neutral: Any) -> bool:
    return given == neutral and isinstance(given, bool) == isinstance(neutral, bool)


def _refusal(error: ValidationError) -> ApiError:
    """Pydantic's first complaint; of a choice between types, the one that came nearest."""
    first = max(error.errors(), key=lambda one: (one["type"] != "extra_forbidden", len(one["loc"])))
    if extra := [one for one in error.errors() if one["type"] == "extra_forbidden" and len(one["loc"]) == 1]:
        name = str(extra[0]["loc"][0])
        return ApiError(400, f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        param = message.partition(":")[0]
        code = "unsupported_parameter" if "not supported" in message else None
        return ApiError(400, message, param=param, code=code)
    param = _dotted(first["loc"])
    if first["type"] == "missing":
        return ApiError(400, f"{param}: is missing", param=param, code="missing_required_parameter")
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def _dotted(location: Sequence[int | str]) -> str:
    """``("messages", 0, "content")`` → ``messages[0].content``; names of types that pydantic tried are left out."""
    words = ""
    for part in location:
        if isinstance(part, int):
            words += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            words += f".{part}" if words else part
    return words


def names(request: ChatRequest | CompletionRequest) -> Mapping[str, str]:
    """Fields of GenerateRequest → what this request calls them."""
    chat = isinstance(request, ChatRequest)
    completion_tokens = chat and request.max_tokens is None
    prompt = "messages" if chat else "prompt"
    return {
        "sampling.max_tokens": "max_completion_tokens" if completion_tokens else "max_tokens",
        "sampling.top_logprobs": "top_logprobs" if chat else "logprobs",
        **dict.fromkeys(("prompt.chat", "prompt.text", "prompt.tokens", "chat", "text", "token_ids"), prompt),
    }
