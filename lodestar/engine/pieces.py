"""What single tokens are, in bytes: log-probs are shown token by token, and one may be half a character."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Tokens
from typing import Any

from lodestar.engine.text import UNDECIDED
from lodestar.records import Detokenized, TokenPiece

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How tokenizers with byte fallback (Llama 2, Gemma) write a single byte."""


class Pieces:
    """``Pieces(tokenizer).detokenized((17, 4))``. Not for several threads at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = json.dumps(json.loads(backend.to_str()).get("decoder")) if backend is not None else ""
        self._byte_level = "ByteLevel" in decoder
        self._byte_fallback = "ByteFallback" in decoder
        self._known: dict[int, TokenPiece] = {}
        self._before = self._anchor()

    def detokenized(self, token_ids: Tokens[int]) -> Detokenized:
        """Text without special tokens, and the pieces."""
        text = str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
        return Detokenized(text, tuple(map(self.piece, token_ids)))

    def piece(self, token: int) -> TokenPiece:
        """One token's."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> TokenPiece:
        written = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:  # a row of the head without a token
            return TokenPiece(b"", b"")
        if token in self._special:
            return TokenPiece(b"", b"", str(written))
        if self._byte_fallback and (byte := _BYTE.fullmatch(written)):
            return TokenPiece(bytes([int(byte[1], 16)]), bytes([int(byte[1], 16)]))
        alone = self._decode([token])
        after = self._decode([*self._before, token]).removeprefix(self._decode(self._before))
        if self._byte_level and UNDECIDED in alone + after and all(letter in _BYTES for letter in written):
            raw = bytes(_BYTES[letter] for letter in written)
            return TokenPiece(raw, raw)
        return TokenPiece(after.encode(), alone.encode())

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _anchor(self) -> list[int]:
        """A token that may stand before any: one whose text is plain."""
        for token in range(len(self._tokenizer)):
            if token not in self._special and self._decode([token]).strip().isalnum():
                return [token]
        return []


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes: printable ones as they are, the others from U+0100 on.

    Source: Radford et al. 2019, the table of GPT-2's encoder.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
