"""Text of growing responses: whole characters, spaces, stop strings across tokens."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lodestar.engine.text import StopChecker, TextStream
from lodestar.local.tiny import tokenizer as word_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, as byte-level BPE without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


BYTES = byte_tokenizer()
TEXT = "naïve café — 日本語, 🙂🙂 and plain words STOP here"


@pytest.mark.parametrize("seed", range(5))
def test_pieces_add_up_to_the_whole_text_and_never_split_a_character(seed: int) -> None:
    ids = BYTES(TEXT)["input_ids"]
    rng = random.Random(seed)
    stream, given = TextStream(BYTES), []
    start = 0
    while start < len(ids):
        end = start + rng.randrange(1, 4)
        given.append(stream.add(ids[start:end], last=end >= len(ids)))
        start = end
    assert "".join(given) == TEXT
    assert not any("\ufffd" in piece for piece in given)


def test_an_unfinished_character_comes_out_at_the_end_as_a_replacement() -> None:
    ids = BYTES("日")["input_ids"]
    stream = TextStream(BYTES)
    assert stream.add(ids[:2]) == ""
    assert stream.add([], last=True) == "\ufffd"


def test_a_stop_string_is_held_back_and_never_given() -> None:
    ids = BYTES(TEXT)["input_ids"]
    stream = TextStream(BYTES, ["STOP", "STAY"])
    given = "".join(stream.add([token]) for token in ids)
    assert given + stream.add([], last=True) == TEXT[: TEXT.index("STOP")]
    false_alarm = TextStream(BYTES, ["STOP"])
    pieces = [false_alarm.add([token]) for token in BYTES("a STO b")["input_ids"]]
    assert "".join(pieces) == "a STO b"
    assert pieces[2:5] == ["", "", ""]


def test_a_stop_is_found_when_its_last_token_arrives() -> None:
    ids = BYTES(TEXT)["input_ids"]
    checker = StopChecker(BYTES, ["STOP", "日本"])
    found = [end for end in range(1, len(ids) + 1) if checker.found(ids[:end])]
    assert BYTES.decode(ids[: found[0]]).endswith("日本")
    assert found[0] == len("naïve café — 日本".encode())


def test_words_keep_their_spaces_after_special_tokens() -> None:
    words = word_tokenizer(40)
    stream = TextStream(words)
    ids = [5, 6, 1, 1, 1, 1, 1, 1, 7, 8]
    assert "".join(stream.add([token]) for token in ids) == words.decode(ids, skip_special_tokens=True)


# --- stop strings and what may come before them --------------------------------------------------------------------
@pytest.mark.parametrize("min_tokens", [0, 4, 5, 6, 30])
def test_a_stop_counts_from_the_least_number_of_tokens_on(min_tokens: int) -> None:
    ids = BYTES("xSTOP and STOP again")["input_ids"]
    checker = StopChecker(BYTES, ["STOP"])
    ended = next((end for end in range(max(1, min_tokens), len(ids) + 1) if checker.found(ids[:end])), len(ids))
    assert ended == {0: 5, 4: 5, 5: 5, 6: 14, 30: 20}[min_tokens]
    for pieces in (1, 3, 100):
        stream = TextStream(BYTES, ["STOP"], min_tokens)
        text = "".join(stream.add(ids[i : i + pieces]) for i in range(0, ended, pieces)) + stream.add([], last=True)
        assert text == {5: "x", 14: "xSTOP and ", 20: "xSTOP and STOP again"}[ended]


def test_a_stop_is_found_across_special_tokens_that_are_not_shown() -> None:
    end = BYTES.eos_token_id
    ids = BYTES("so ST")["input_ids"] + [end] * 20 + BYTES("OP")["input_ids"]
    assert StopChecker(BYTES, ["STOP"]).found(ids)


def test_a_stop_that_ends_in_a_character_of_several_bytes_is_found_with_its_last_byte() -> None:
    ids = BYTES("日本")["input_ids"]
    checker = StopChecker(BYTES, ["日本"])
    assert [checker.found(ids[:end]) for end in range(1, 7)] == [False] * 5 + [True]


def test_bytes_that_never_make_a_character_come_out_as_they_go() -> None:
    ids = BYTES("日")["input_ids"]
    stream = TextStream(BYTES)
    given = [stream.add([ids[0]]) for _ in range(20)]
    assert "".join(given) == "\ufffd" * 17
    assert stream.add(ids[1:]) == "\ufffd" * 2 + "日"
    calls: list[int] = []

    class Counting:
        def decode(self, tokens: list[int], **options: bool) -> str:
            calls.append(len(tokens))
            return str(BYTES.decode(tokens, **options))

    counted = TextStream(Counting())
    for _ in range(200):
        counted.add([ids[0]])
    assert max(calls) <= 16
