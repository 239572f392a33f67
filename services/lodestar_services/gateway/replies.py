"""What callers get: OpenAI's objects, whole or as events of a stream, made from chunks of samples."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lodestar.records import FinishReason, GenerationChunk, ModelInfo, TokenPiece
from lodestar_services.gateway.errors import SERVER, ApiError
from lodestar_services.gateway.gateway import Echo
from lodestar_services.gateway.tokens import ChatTokens, TextTokens, glue
from lodestar_services.gateway.usage import Usage

DONE = b"data: [DONE]\n\n"
_FINISH = {FinishReason.EOS: "stop", FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
Pieces = Mapping[int, TokenPiece]


@dataclass(slots=True)
class _Choice:
    """One sample so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    tokens: Any = None
    """Reads this choice's tokens for its log-probs; None where none are wanted."""


class Reply(ABC):
    """``for event in reply.events(chunk): …`` of a stream, or ``reply.take(chunk)`` and then ``reply.whole()``."""

    kind: str
    """Of the object: ``chat.completion``."""
    prefix: str
    """Of its id."""

    def __init__(self, model: str, *, samples: int, logprobs: bool, wants_usage: bool = False) -> None:
        self._logprobs = logprobs
        self._tail = ',"usage":null}' if wants_usage else "}"
        self._base = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._head = ""
        self._fingerprint: str | None = None
        self._choices: dict[int, _Choice] = {}
        self._samples = samples
        self.usage = Usage(samples)

    def take(self, index: int, chunk: GenerationChunk, pieces: Pieces) -> dict[str, Any]:
        """Adds a chunk to its choice; what it adds, as a choice of a stream.

        Raises:
            ApiError: the model failed at this sample.
        """
        if chunk.finish_reason is FinishReason.ERROR:
            raise ApiError(500, chunk.error or "the model failed at this sample", kind=SERVER)
        self._sign(chunk.model)
        choice = self._choice(index)
        self.usage.count(index, chunk)
        logprobs = choice.tokens.read(chunk, pieces) if self._logprobs else None
        text = self._joined(choice, chunk, pieces)
        first = not choice.texts
        choice.texts.append(text)
        if logprobs:
            choice.logprobs.append(logprobs)
        choice.finish = _FINISH.get(chunk.finish_reason) if chunk.finish_reason else None
        return self._delta(index, text, first, logprobs, choice.finish)

    def events(self, index: int, chunk: GenerationChunk, pieces: Pieces) -> Iterator[bytes]:
        """The stream's events of a chunk; none where it adds nothing that can be seen."""
        new = index not in self._choices
        delta = self.take(index, chunk, pieces)
        if new or chunk.text or delta.get("finish_reason") or delta.get("logprobs"):
            yield self._event(delta)

    def last_event(self) -> bytes:
        """A stream's usage."""
        base = self._signed(f"{self.kind}.chunk" if self.kind.startswith("chat") else self.kind)
        return b"data: " + _json({**base, "choices": [], "usage": self.usage.whole()}).encode() + b"\n\n"

    def whole(self) -> dict[str, Any]:
        """The answer."""
        choices = [self._finished(index, choice) for index, choice in sorted(self._choices.items())]
        return {**self._signed(self.kind), "choices": choices, "usage": self.usage.whole()}

    def _event(self, delta: dict[str, Any]) -> bytes:
        if not self._head:
            kind = f"{self.kind}.chunk" if self.kind.startswith("chat") else self.kind
            self._head = "data: " + _json(self._signed(kind))[:-1] + ',"choices":['
        return f"{self._head}{_json(delta)}]{self._tail}\n\n".encode()

    def _sign(self, model: ModelInfo) -> None:
        if self._fingerprint is None:
            version = model.version
            self._fingerprint = f"{version.incarnation or 'start'}-{version.step}-{version.digest[:12]}"

    def _signed(self, kind: str) -> dict[str, Any]:
        return {**self._base, "object": kind, "system_fingerprint": self._fingerprint}

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            self._choices[index] = _Choice(tokens=self._tokens(index) if self._logprobs else None)
        return self._choices[index]

    def _joined(self, choice: _Choice, chunk: GenerationChunk, pieces: Pieces) -> str:
        return chunk.text

    @abstractmethod
    def _tokens(self, index: int) -> Any:
        """A reader of a choice's tokens."""

    @abstractmethod
    def _delta(
        self, index: int, text: str, first: bool, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        """A choice of a stream's event."""

    @abstractmethod
    def _finished(self, index: int, choice: _Choice) -> dict[str, Any]:
        """A choice of the whole answer."""


class ChatReply(Reply):
    """A chat completion."""

    kind, prefix = "chat.completion", "chatcmpl"

    def _tokens(self, index: int) -> ChatTokens:
        return ChatTokens()

    def _delta(
        self, index: int, text: str, first: bool, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if first else ({"content": text} if text else {})
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _finished(self, index: int, choice: _Choice) -> dict[str, Any]:
        content = [entry for part in choice.logprobs for entry in part["content"]]
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
            "logprobs": {"content": content, "refusal": None} if self._logprobs else None,
            "finish_reason": choice.finish,
        }


class TextReply(Reply):
    """A text completion; with ``echoes`` each choice begins with its prompt."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(
        self, model: str, *, samples: int, logprobs: int | None, echoes: Sequence[Echo] = (), wants_usage: bool = False
    ) -> None:
        super().__init__(model, samples=samples, logprobs=logprobs is not None, wants_usage=wants_usage)
        self._echoes = echoes

    def echo(self, pieces: Pieces, model: ModelInfo, *, alone: bool) -> Iterator[bytes]:
        """Every choice's prompt, as events; ``alone``: nothing follows it."""
        self._sign(model)
        for place, echo in enumerate(self._echoes):
            for index in range(place * self._samples, (place + 1) * self._samples):
                choice = self._choice(index)
                logprobs = choice.tokens.echo(echo, pieces) if self._logprobs else None
                choice.texts.append(echo.text)
                choice.finish = "length" if alone else None
                if logprobs:
                    choice.logprobs.append(logprobs)
                self.usage.prompt(index, len(echo.token_ids))
                yield self._event(self._delta(index, echo.text, True, logprobs, choice.finish))

    def _joined(self, choice: _Choice, chunk: GenerationChunk, pieces: Pieces) -> str:
        """Between an echo and what follows it there is the space that the tokenizer writes between words."""
        first = self._echoes and len(choice.texts) == 1 and chunk.token_ids and chunk.text
        return glue(pieces[chunk.token_ids[0]]) + chunk.text if first else chunk.text

    def _tokens(self, index: int) -> TextTokens:
        return TextTokens()

    def _delta(
        self, index: int, text: str, first: bool, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _finished(self, index: int, choice: _Choice) -> dict[str, Any]:
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        logprobs = {name: [one for part in choice.logprobs for one in part[name]] for name in names}
        return self._delta(index, "".join(choice.texts), True, logprobs if self._logprobs else None, choice.finish)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
