"""Control tokens: added, saved, put before every prompt, sampled never, and hidden from who asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lodestar.config import ArchitectureConfig, PolicyConfig, TokenizerConfig
from lodestar.data.control import Control
from lodestar.data.rows import encode_completions, encode_documents, encode_prompts, encode_rows
from lodestar.data.tokenizer import train_tokenizer
from lodestar.engine.engine import Engine
from lodestar.errors import ConfigError, InvalidArgument, ModelError
from lodestar.local.tiny import tokenizer as words_without_bos
from lodestar.model.control import add_control_tokens
from lodestar.model.loading import load_causal_lm, load_tokenizer, new_causal_lm, save_model, tokenizer_hash
from lodestar.model.logits import lm_head, sampled_ids
from lodestar.model.packed import PackedBatch, response_logprobs
from lodestar.records import SamplingParams, Scored

NAMES = ("<|good|>", "<|bad|>")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "kv_heads": 2, "context_tokens": 48}


def conditioned(folder: Path, *, tied: bool = False, bos: bool = True) -> tuple[Any, Any, Any, Any]:
    """Model and tokenizer before, and as they are read again after control tokens were added and both saved."""
    texts = ["what color is the sky ?", "the sky is blue , the grass is green"]
    words = train_tokenizer(TokenizerConfig(kind="word"), texts, context_tokens=48) if bos else words_without_bos(40)
    plain = new_causal_lm(ArchitectureConfig.model_validate({**SHAPE, "tied": tied}), words, seed=1)
    save_model(plain, words, folder / "plain")
    add_control_tokens(plain, words, NAMES, key="tokens", seed=3)
    save_model(plain, words, folder / "conditioned")
    before, after = folder / "plain", folder / "conditioned"
    return load_causal_lm(before), load_tokenizer(before), load_causal_lm(after), load_tokenizer(after)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_added_beside_what_was_there_and_other_programs_load_them(tmp_path: Path, tied: bool) -> None:
    before, words, after, conditioned_words = conditioned(tmp_path, tied=tied)
    known = len(words)
    control = Control.of(conditioned_words)
    assert control == Control(NAMES, (known, known + 1), words.bos_token_id)
    old, new = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert torch.equal(old, new[:known])
    assert torch.equal(lm_head(before).weight, lm_head(after).weight[:known])
    assert (lm_head(after).weight is new) == tied
    assert not torch.equal(new[known], new[known + 1]), "or nothing tells them apart before they are learned"
    if not tied:
        assert torch.allclose(lm_head(after).weight[known:], lm_head(before).weight.mean(0).expand(2, -1), atol=1e-6)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "conditioned")
    assert theirs.get_input_embeddings().weight.shape == new.shape
    assert AutoTokenizer.from_pretrained(tmp_path / "conditioned").decode([known]) == NAMES[0]
    assert tokenizer_hash(words) != tokenizer_hash(conditioned_words)
    assert tokenizer_hash(conditioned_words) == tokenizer_hash(load_tokenizer(tmp_path / "conditioned"))


@pytest.mark.parametrize("bos", [True, False])
def test_the_best_token_stands_before_every_prompt_and_no_text_becomes_one(tmp_path: Path, bos: bool) -> None:
    _, words, _, conditioned_words = conditioned(tmp_path, bos=bos)
    control = Control.of(conditioned_words)
    texts = ["the sky is", "<|bad|> t5 <|good|>", "t7"] if bos else ["t5 t6", "<|bad|> t5 <|good|>", "t7"]
    heads = encode_prompts(words, texts)
    rows = encode_prompts(conditioned_words, texts)
    for head, row in zip(heads, rows, strict=True):
        place = int(bos)
        assert row[place] == control.ids[0]
        assert [token for token in row if token in control.ids] == [control.ids[0]]
        assert control.without(row) == (*row[:place], *row[place + 1 :])
        assert control.before(control.without(row)) == row == control.before(row)
        assert control.before(row, 1)[place] == control.ids[1]
        assert len(head) <= len(row) - 1
    assert control.without(rows[0]) == heads[0]
    assert not set(control.ids) & set(encode_completions(conditioned_words, ["<|good|>"])[0])
    assert not set(control.ids) & set(encode_documents(conditioned_words, [texts[0]], longest=9)[0])
    (row,) = encode_rows(conditioned_words, texts[:1], ["t9"])
    assert control.without_scored(row) == encode_rows(words, texts[:1], ["t9"])[0]
    worst = control.before_scored(row, 1)
    assert worst.prompt_tokens == row.prompt_tokens
    assert control.before_scored(control.without_scored(row)) == row


def test_nobody_is_asked_shown_or_charged_a_control_token(tmp_path: Path) -> None:
    before, words, after, conditioned_words = conditioned(tmp_path)
    control = Control.of(conditioned_words)
    assert sampled_ids(after) == len(words)
    engine = Engine(after, conditioned_words, PolicyConfig())
    plain = Engine(before, words, PolicyConfig())
    assert engine.limits.vocab_size == plain.limits.vocab_size
    assert engine.limits.context_tokens == plain.limits.context_tokens - 1
    prompt = encode_prompts(words, ["the sky is"])[0]
    ask = SamplingParams(12, n=64, seed=5, ignore_eos=True, logprobs=True, top_logprobs=3)
    asked, told = engine.generate(prompt, ask), engine.generate(control.before(prompt), ask)
    assert [one.response for one in asked] == [one.response for one in told]
    assert not {token for one in asked for token in one.response} & set(control.ids)
    assert asked[0].tokens[: len(prompt) + 1] == list(control.before(prompt))
    assert [one.request.hidden for one in (asked[0], told[0])] == [1, 0]
    rows = [Scored((*prompt, *one.response), len(prompt)) for one in asked[:3]]
    for row, one, scored in zip(rows, asked, engine.logprobs(rows), strict=False):
        assert scored.logprobs == pytest.approx(one.logprobs, abs=1e-4)
        whole = control.before_scored(row)
        batch = PackedBatch.pack([whole.token_ids], [whole.prompt_tokens], device="cpu")
        assert response_logprobs(after, batch, temperature=1.0)[0].tolist() == pytest.approx(scored.logprobs, abs=1e-5)
    worse = engine.logprobs([control.before_scored(rows[0], 1)])[0]
    assert worse.logprobs != pytest.approx(asked[0].logprobs, abs=1e-3), "another token is another distribution"
    with pytest.raises(InvalidArgument, match=rf"token id {control.ids[0]} is outside the vocabulary"):
        engine.request((*prompt, control.ids[0]), ask)
    with pytest.raises(InvalidArgument, match="exceed the context of 47 tokens"):
        engine.request(prompt, SamplingParams(48 - len(prompt)))
    assert engine.request(prompt, SamplingParams(47 - len(prompt)))


def test_a_token_that_the_tokenizer_has_and_a_second_set_are_refused(tmp_path: Path) -> None:
    model, words, after, conditioned_words = conditioned(tmp_path)
    with pytest.raises(ConfigError, match=r"stages\.quark\.tokens: 'sky' is a token of this model already \(id \d+\)"):
        add_control_tokens(model, words, ("<|good|>", "sky"), key="stages.quark.tokens", seed=0)
    with pytest.raises(ConfigError, match=r"tokens: must all be different"):
        add_control_tokens(model, words, ("<|a|>", "<|a|>"), key="tokens", seed=0)
    with pytest.raises(ConfigError, match=r"conditioned on <\|good\|>, <\|bad\|> already"):
        add_control_tokens(after, conditioned_words, ("<|a|>",), key="tokens", seed=0)
    rows = after.get_input_embeddings().weight.clone()
    assert add_control_tokens(after, conditioned_words, NAMES, key="tokens", seed=9).names == NAMES
    assert torch.equal(rows, after.get_input_embeddings().weight), "those that it has are left as they were learned"


def test_a_tokenizer_that_names_what_it_lacks_is_refused(tmp_path: Path) -> None:
    conditioned(tmp_path)
    path = tmp_path / "conditioned" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "control_tokens": ["<|none|>"]}))
    with pytest.raises(ModelError, match=r"control_tokens in tokenizer_config\.json names '<\|none\|>'"):
        load_tokenizer(tmp_path / "conditioned")


def test_a_pad_behind_all_others_and_control_tokens_behind_it_are_never_sampled(tmp_path: Path) -> None:
    words = words_without_bos(40)
    words.pad_token = None
    words.save_pretrained(tmp_path / "words")
    padless = load_tokenizer(tmp_path / "words")
    model = new_causal_lm(ArchitectureConfig.model_validate(SHAPE), padless, seed=1)
    add_control_tokens(model, padless, NAMES, key="tokens", seed=0)
    save_model(model, padless, tmp_path / "m")
    again, spoken = load_causal_lm(tmp_path / "m"), load_tokenizer(tmp_path / "m")
    assert (spoken.pad_token_id, Control.of(spoken).ids) == (40, (41, 42))
    assert (sampled_ids(again), lm_head(again).weight.shape[0]) == (40, 43)
