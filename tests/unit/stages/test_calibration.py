"""The calibration stage on a tiny model, held against transformers' own probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from lodestar.config import RunConfig
from lodestar.crew.inline import run_inline
from lodestar.data.rows import encode_rows
from lodestar.errors import ConfigError
from lodestar.files import read_json
from lodestar.local.tiny import llama, tokenizer
from lodestar.model.tokenizers import load_tokenizer
from lodestar.model.weights import save_model
from lodestar.recipe.plan import plan

QUESTIONS = [
    {"prompt": f"t{i + 5} t3", "choices": ["t20", "t21 t22", f"t{23 + i} t24 t25"], "answer": i % 3} for i in range(12)
]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    model = llama(hidden=32, layers=2, vocab=64, eos_bias=1.0, seed=3)
    save_model(model, tokenizer(64), tmp_path / "model")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return RunConfig.model_validate(
        {
            "name": "asked",
            "runs_dir": str(tmp_path),
            "model": {"path": str(tmp_path / "model"), "device": "cpu"},
            "stages": {"calibration": {"file": str(tmp_path / "q.jsonl")}},
        }
    )


def _probabilities(folder: Path, per_token: bool) -> list[list[float]]:
    """Shares of each question's answers, by transformers alone."""
    model, tokens = LlamaForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    found = []
    for question in QUESTIONS:
        nats = []
        choices: Any = question["choices"]
        for row in encode_rows(tokens, [str(question["prompt"])] * len(choices), choices):
            with torch.no_grad():
                logits = model(torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
            reply = range(row.prompt_tokens, len(row.token_ids))
            total = sum(float(logits[t - 1, row.token_ids[t]]) for t in reply)
            nats.append(total / (len(reply) if per_token else 1))
        found.append(torch.tensor(nats).softmax(0).tolist())
    return found


@pytest.mark.parametrize("per_token", [False, True])
def test_a_policys_confidence_is_its_answers_share(run: RunConfig, per_token: bool) -> None:
    options = {**run.stages["calibration"], "per_token": per_token}
    asked = run.model_copy(update={"stages": {"calibration": options}})
    folder = run_inline(asked)
    found = read_json(folder.root / "calibration" / "figures" / "calibration.json")
    shares = _probabilities(Path(str(run.model.path)), per_token)
    sure = sum(map(max, shares)) / len(shares)
    right = sum(of.index(max(of)) == row["answer"] for of, row in zip(shares, QUESTIONS, strict=True)) / len(shares)
    assert found["after"]["confidence"] == pytest.approx(sure, abs=1e-4)
    assert found["after"]["accuracy"]["value"] == pytest.approx(right)
    assert found["after"]["n"] == 12
    assert "before" not in found


def test_questions_are_needed_outside_the_synthetic_world(run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"stages\.calibration\.file: must name a file of questions"):
        plan(run.model_copy(update={"stages": {"data": {"source": "jsonl", "root": "x"}, "calibration": {}}}))


def test_after_ppo_the_model_that_it_began_from_is_asked_too() -> None:
    made = plan(RunConfig.model_validate({"name": "a", "recipe": "instruct-gpt"}))
    stages = {step.name: {} for step in made.steps if step.name != "report"} | {"calibration": {}}
    step = plan(RunConfig.model_validate({"name": "a", "stages": stages})).step("calibration")
    assert step.inputs["policy"] == ("ppo/policy",)
    assert step.inputs["against"] == ("sft/policy",)
    assert step.inputs["prompts"] == ("data/prompts",)
