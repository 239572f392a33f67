"""Likelihoods of completions against the plain model in float64, and comparisons that they label."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.data.files import read_feedback, write_jsonl
from lodestar.data.rows import encode_rows
from lodestar.errors import InvalidArgument
from lodestar.local.tiny import write_tiny_models
from lodestar.model.loading import load_causal_lm, load_tokenizer
from lodestar.records import Choice, Demonstration, Feedback
from lodestar.train.likelihood import judged_by_likelihood, log_likelihoods

ROWS = [
    Feedback("t4 t5", ("t6", "t6 t7 t8 t9", "t4"), (Choice(0, 1, 1.0), Choice(0, 2, 1.0)), "one"),
    Feedback("t9 t8 t7", ("t5", "t5 t4"), (Choice(0, 1, 1.0),), "two"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_models(folder)
    return folder / "policy"


def slow(path: Path, prompt: str, completion: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").double()
    (scored,) = encode_rows(load_tokenizer(path), [prompt], [completion])
    ids = torch.tensor(scored.token_ids)
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(scored.prompt_tokens, len(ids)))


@pytest.mark.parametrize("batch_tokens", [1, 12, 8192])
def test_log_likelihoods_are_the_plain_models_whatever_the_batches(path: Path, batch_tokens: int) -> None:
    found = log_likelihoods(load_causal_lm(path), load_tokenizer(path), ROWS, batch_tokens=batch_tokens)
    expected = [[slow(path, row.prompt, text) for text in row.completions] for row in ROWS]
    assert [len(row) for row in found] == [3, 2]
    assert [x for row in found for x in row] == pytest.approx([x for row in expected for x in row], abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_every_pair_is_labelled_by_the_ratio_of_likelihoods(path: Path, temperature: float) -> None:
    model, tokenizer = load_causal_lm(path), load_tokenizer(path)
    (first, *_) = judged_by_likelihood(model, tokenizer, ROWS, temperature=temperature)
    likelihoods = log_likelihoods(model, tokenizer, ROWS)
    assert isinstance(first.verdict, tuple)
    assert [(choice.first, choice.second) for choice in first.verdict] == [(0, 1), (0, 2), (1, 2)]
    for choice in first.verdict:
        ratio = math.exp((likelihoods[0][choice.first] - likelihoods[0][choice.second]) / temperature)
        assert choice.label == pytest.approx(ratio / (1 + ratio))
    assert (first.prompt, first.completions, first.id) == (ROWS[0].prompt, ROWS[0].completions, "one")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_above_zero(path: Path, temperature: float) -> None:
    with pytest.raises(InvalidArgument, match="temperature"):
        judged_by_likelihood(load_causal_lm(path), load_tokenizer(path), ROWS, temperature=temperature)


def test_the_command_refuses_a_temperature_of_nothing(tmp_path: Path) -> None:
    source = tmp_path / "shown.jsonl"
    write_jsonl(source, [Demonstration("t4 t5", "t6 t7"), Demonstration("t4 t6", "t6 t8 t9")])
    result = CliRunner().invoke(app, ["data", "contrast", str(source), str(tmp_path / "out"), "--temperature", "2"])
    assert result.exit_code == 2
    assert "--by" in result.output
    assert not (tmp_path / "out").exists()


def test_the_command_lets_a_model_judge_contrasts(tmp_path: Path, path: Path) -> None:
    source, output = tmp_path / "shown.jsonl", tmp_path / "contrasts.jsonl"
    write_jsonl(source, [Demonstration("t4 t5", "t6 t7"), Demonstration("t4 t6", "t6 t8 t9")])
    result = CliRunner().invoke(
        app, ["data", "contrast", str(source), str(output), "--rows", "4", "--by", str(path), "--temperature", "3"]
    )
    assert "4 rows from 2 demonstrations" in result.output
    labels = [choice.label for row in read_feedback(output) if isinstance(row.verdict, tuple) for choice in row.verdict]
    assert len(labels) >= 4
    assert all(0 < label < 1 for label in labels)
