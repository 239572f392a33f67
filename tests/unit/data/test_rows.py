"""One function turns text into tokens for every stage; these are its promises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lodestar.config import TokenizerConfig
from lodestar.data.rows import encode_completions, encode_documents, encode_prompts, encode_rows
from lodestar.data.tokenizer import train_tokenizer
from lodestar.errors import ConfigError
from lodestar.model.loading import load_tokenizer, tokenizer_hash

TEXTS = ["what color is the sky ?", "the sky is blue .", "\n\nHuman: hi\n\nAssistant: hello"]


def _tokenizer(kind: str) -> PreTrainedTokenizerBase:
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), TEXTS, context_tokens=64)


@pytest.fixture(scope="module", params=["word", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return _tokenizer(request.param)


def test_a_row_is_bos_prompt_completion_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = encode_rows(tokenizer, ["what color is the sky ?"], ["the sky is blue ."])
    prompt, completion = row.token_ids[: row.prompt_tokens], row.token_ids[row.prompt_tokens :]
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompt[1:]) == "what color is the sky ?"
    assert completion[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(completion[:-1]) == "the sky is blue ."


def test_a_completion_that_was_cut_off_has_no_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    (whole,), (cut,) = (encode_completions(tokenizer, ["the sky"], ended=ended) for ended in (True, False))
    assert whole == (*cut, tokenizer.eos_token_id)


def test_generation_starts_from_the_tokens_that_training_saw(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = encode_rows(tokenizer, ["what color is"], ["the sky ?"])
    assert encode_prompts(tokenizer, ["what color is"]) == [row.token_ids[: row.prompt_tokens]]


def test_plain_calls_of_the_tokenizer_agree(tokenizer: PreTrainedTokenizerBase) -> None:
    assert list(encode_prompts(tokenizer, ["the sky"])[0]) == tokenizer("the sky")["input_ids"]


def test_bos_that_a_template_wrote_is_not_doubled(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode_prompts(tokenizer, ["<bos>the sky"]) == encode_prompts(tokenizer, ["the sky"])


def test_documents_run_from_bos_to_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,) = encode_documents(tokenizer, ["the sky"], longest=64)
    assert (row[0], row[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_no_rows_give_no_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode_rows(tokenizer, [], []) == []


def test_long_documents_are_cut_and_nothing_is_lost_but_a_last_token_alone() -> None:
    (whole,) = encode_documents(BPE, ["the sky is blue today"], longest=64)
    pieces = encode_documents(BPE, ["the sky is blue today"], longest=4)
    assert {len(piece) for piece in pieces[:-1]} == {4}
    joined = tuple(token for piece in pieces for token in piece)
    assert joined in (whole, whole[:-1])
    assert all(len(piece) > 1 for piece in pieces)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=50, deadline=None)
def test_byte_level_bpe_gives_any_text_back(text: str) -> None:
    (row,) = encode_completions(BPE, [text], ended=False)
    assert BPE.decode(row) == text


BPE = _tokenizer("bpe")


def test_a_saved_tokenizer_is_the_same_with_pad_other_than_eos(tokenizer: PreTrainedTokenizerBase, tmp_path) -> None:  # type: ignore[no-untyped-def]
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert loaded.pad_token_id is not None
    assert loaded.pad_token_id != loaded.eos_token_id
    assert encode_rows(loaded, TEXTS, TEXTS) == encode_rows(tokenizer, TEXTS, TEXTS)


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.tokenizer.vocab_size: byte-level BPE needs at least 260, got 100"):
        train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=100), TEXTS, context_tokens=64)
