"""A conditioned model over a socket: it answers under the best control token, and nobody who asks sees one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lodestar.client import PolicyClient, ReferenceClient
from lodestar.data.control import Control
from lodestar.data.rows import encode_prompts
from lodestar.errors import InvalidArgument
from lodestar.model.control import add_control_tokens
from lodestar.model.loading import load_causal_lm, load_tokenizer, save_model
from lodestar.records import Scored

TEXT = "what color is the sky ?"


@pytest.fixture(scope="module")
def folder(tiny_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("conditioned") / "policy"
    model, words = load_causal_lm(tiny_models.sft), load_tokenizer(tiny_models.sft)
    add_control_tokens(model, words, ("<|good|>", "<|bad|>"), key="tokens", seed=1)
    save_model(model, words, path)
    return path


@pytest.fixture(scope="module")
def client(start_service: Any, folder: Path) -> Iterator[PolicyClient]:
    with PolicyClient(start_service("policy", model=str(folder)).address) as client:
        yield client


def test_text_ids_log_probs_and_counts_are_the_callers(
    client: PolicyClient, folder: Path, tiny_models: Any, start_service: Any
) -> None:
    words, bare = load_tokenizer(folder), encode_prompts(load_tokenizer(tiny_models.sft), [TEXT])[0]
    control = Control.of(words)
    by_text = client.generate(TEXT, n=8, max_tokens=20, seed=3, logprobs=True, ignore_eos=True)
    by_ids = client.generate(bare, n=8, max_tokens=20, seed=3, logprobs=True, ignore_eos=True)
    trained = client.generate(encode_prompts(words, [TEXT])[0], n=8, max_tokens=20, seed=3, ignore_eos=True)
    assert [one.token_ids for one in by_text.completions] == [one.token_ids for one in by_ids.completions]
    assert [one.token_ids for one in by_text.completions] == [one.token_ids for one in trained.completions]
    assert by_text.prompt_tokens == by_ids.prompt_tokens == len(bare)
    assert trained.prompt_tokens == len(bare) + 1, "who sends it is told of it"
    assert not {token for one in by_text.completions for token in one.token_ids} & set(control.ids)
    assert not any(name in one.text for one in by_text.completions for name in control.names)
    rows = [Scored((*bare, *one.token_ids), len(bare)) for one in by_text.completions]
    with ReferenceClient(start_service("reference", model=str(folder)).address) as reference:
        answers = (client.logprobs(rows).sequences, reference.logprobs(rows).sequences)
        assert reference.describe().context_tokens == 63
    for mine, theirs, one in zip(*answers, by_text.completions, strict=True):
        assert one.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
        assert one.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    described = client.describe()
    with PolicyClient(start_service("policy", model=str(tiny_models.sft)).address) as plain:
        assert plain.describe().context_tokens == 64
        assert described.vocab_size == plain.describe().vocab_size
    assert described.context_tokens == 63


def test_a_control_token_in_a_text_is_text_and_among_ids_is_refused(client: PolicyClient, folder: Path) -> None:
    words = load_tokenizer(folder)
    control = Control.of(words)
    ids = client.tokenize("the <|bad|> sky")
    assert not set(ids) & set(control.ids)
    assert client.tokenize("the sky", add_special_tokens=True)[0] == words.bos_token_id
    told = client.generate("the <|bad|> sky", max_tokens=2, seed=1)
    assert told.prompt_tokens == len(ids) + 1, "BOS"
    with pytest.raises(InvalidArgument, match=r"prompt\.tokens\[2\]: token id \d+ is outside the vocabulary"):
        client.generate((words.bos_token_id, 5, control.ids[1], 6), max_tokens=2)
    with pytest.raises(InvalidArgument, match="exceed the context of 63 tokens"):
        client.generate((words.bos_token_id, 5), max_tokens=62)
    worse = client.generate((words.bos_token_id, control.ids[1], 5, 6), n=16, max_tokens=8, seed=1).completions
    better = client.generate((words.bos_token_id, 5, 6), n=16, max_tokens=8, seed=1).completions
    assert worse != better, "ids may choose another token in its place"
