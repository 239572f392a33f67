"""What single tokens are, for tokenizers that write words, bytes and single bytes in different ways."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lodestar.config import TokenizerConfig
from lodestar.data.tokenizer import train_tokenizer
from lodestar.engine.pieces import Pieces
from lodestar.records import TokenPiece

TEXT = "the naïve 🌱 is green, so it is ."


def byte_level() -> Any:
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=280), [TEXT], context_tokens=64)


def words() -> Any:
    return train_tokenizer(TokenizerConfig(kind="word"), [TEXT], context_tokens=64)


def byte_fallback() -> Any:
    """As Llama 2 writes: ▁ for spaces, <0xNN> for what it has no piece of."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *sorted(set("thenaviswgrco,."))]
    inner = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def only_whitespace() -> Any:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, words, byte_fallback])
def test_pieces_one_after_the_other_are_the_text(make: Any) -> None:
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    answer = Pieces(tokenizer).detokenized(ids)
    joined = answer.pieces[0].at_start + b"".join(piece.text for piece in answer.pieces[1:])
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert joined.decode() == answer.text
    assert not any(piece.special for piece in answer.pieces)


def test_half_a_character_is_its_bytes() -> None:
    tokenizer = byte_fallback()
    ids = tokenizer("🌱", add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer).detokenized(ids).pieces
    assert b"".join(piece.text for piece in pieces[-4:]) == "🌱".encode()
    assert [len(piece.text) for piece in pieces[-4:]] == [1, 1, 1, 1]


def test_special_tokens_have_names_and_no_text() -> None:
    for tokenizer in (byte_level(), words(), byte_fallback()):
        pieces = Pieces(tokenizer)
        assert pieces.piece(tokenizer.eos_token_id) == TokenPiece(b"", b"", tokenizer.eos_token)
        assert pieces.detokenized([tokenizer.eos_token_id]).text == ""


def test_words_are_parted_where_they_stand_after_others() -> None:
    assert Pieces(only_whitespace()).detokenized([2, 3]).pieces == (TokenPiece(b" a", b"a"), TokenPiece(b" b", b"b"))


def test_a_row_of_the_head_without_a_token_adds_nothing() -> None:
    assert Pieces(words()).piece(100_000) == TokenPiece(b"", b"")
