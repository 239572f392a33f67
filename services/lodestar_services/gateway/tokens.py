"""Log-probs token by token, in OpenAI's two forms: of softmax(logits / temperature), as the engine gives them."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from lodestar.records import GenerationChunk, TokenPiece
from lodestar_services.gateway.gateway import Echo

Pieces = Mapping[int, TokenPiece]


def ids_of(chunk: GenerationChunk) -> set[int]:
    """Tokens whose pieces a chunk's log-probs need."""
    return {*chunk.token_ids, *(one.token_id for position in chunk.top_logprobs for one in position)}


def glue(piece: TokenPiece) -> str:
    """What a tokenizer writes before this token when others precede it: a space, or nothing."""
    return piece.text.decode(errors="replace").removesuffix(piece.at_start.decode(errors="replace"))


class ChatTokens:
    """Of one choice of a chat."""

    def __init__(self) -> None:
        self._first = True

    def read(self, chunk: GenerationChunk, pieces: Pieces) -> dict[str, Any]:
        """A chunk's."""
        content = []
        for place, (token, logprob) in enumerate(zip(chunk.token_ids, chunk.logprobs, strict=True)):
            best = chunk.top_logprobs[place] if chunk.top_logprobs else ()
            candidates = [_entry(pieces[one.token_id], one.logprob, self._first) for one in best]
            content.append({**_entry(pieces[token], logprob, self._first), "top_logprobs": candidates})
            self._first = False
        return {"content": content, "refusal": None}


def _entry(piece: TokenPiece, logprob: float, first: bool) -> dict[str, Any]:
    if piece.special:
        return {"token": piece.special, "logprob": logprob, "bytes": None}
    raw = piece.at_start if first else piece.text
    return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}


class TextTokens:
    """Of one choice of a text completion; offsets count characters of its text."""

    def __init__(self) -> None:
        self._first = True
        self._characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, chunk: GenerationChunk, pieces: Pieces) -> dict[str, Any]:
        """A chunk's."""
        best: Sequence[Mapping[int, float]] = [
            {one.token_id: one.logprob for one in position} for position in chunk.top_logprobs
        ]
        return self._rows(chunk.token_ids, chunk.logprobs, best, pieces)

    def echo(self, echo: Echo, pieces: Pieces) -> dict[str, Any]:
        """A prompt's; nothing precedes its first token, which has no log-prob."""
        best = [None, *echo.candidates] if echo.candidates else []
        return self._rows(echo.token_ids, [None, *echo.logprobs], best, pieces)

    def _rows(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float | None],
        best: Sequence[Mapping[int, float] | None],
        pieces: Pieces,
    ) -> dict[str, Any]:
        tokens, offsets = [], []
        tops: list[dict[str, float] | None] = []
        for place, token in enumerate(token_ids):
            first = self._first
            tokens.append(_written(pieces[token], first))
            offsets.append(self._offset(pieces[token]))
            candidates = best[place] if best else None
            logprob = logprobs[place]
            if candidates is None or logprob is None:
                tops.append(None)
                continue
            top: dict[str, float] = {}
            for one, value in {**candidates, token: logprob}.items():  # its own as it stands in token_logprobs
                word = _written(pieces[one], first)
                top[word] = max(value, top.get(word, value))  # two tokens may be written alike
            tops.append(top)
        return {"tokens": tokens, "token_logprobs": list(logprobs), "top_logprobs": tops, "text_offset": offsets}

    def _offset(self, piece: TokenPiece) -> int:
        raw = b"" if piece.special else (piece.at_start if self._first else piece.text)
        half = bool(self._decoder.getstate()[0]) and bool(raw) and not 0x80 <= raw[0] < 0xC0
        before = self._characters + half  # an unfinished character that this token does not go on with is one already
        self._characters += len(self._decoder.decode(raw))
        self._first = self._first and bool(piece.special)
        return before


def _written(piece: TokenPiece, first: bool) -> str:
    raw = piece.at_start if first else piece.text
    if piece.special:
        return piece.special
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
