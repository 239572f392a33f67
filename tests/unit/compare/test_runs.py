"""What a finished run brings: its replies, and the cost of all that its policy is made from and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lodestar.compare.runs import behind, read_outcome, read_outcomes
from lodestar.config import RunConfig, dump
from lodestar.errors import FailedPrecondition
from lodestar.evaluation import best_of_n_kl
from lodestar.files import write_atomically, write_jsonl
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import plan

SECONDS = {"data": 1.0, "sft": 10.0, "reward": 100.0, "ppo": 1000.0, "evaluate": 10_000.0, "sample": 7.0}
REPLY = {"text": "x", "tokens": 5, "finish_reason": "eos", "step": 0, "score": 0.5, "gold": 1.0}


def finished(root: Path, stages: dict[str, Any], *, held: bool = True, done: bool = True, **run: Any) -> Path:
    """A run's folder whose stages are sealed."""
    config = RunConfig.model_validate({"name": root.name, "stages": stages, **run})
    write_atomically(root / "config.yaml", dump(config))
    folder = RunFolder.open(root)
    for step in folder.plan.steps:
        made = folder.store.unfinished(step)
        for port in step.makes:
            write_atomically(made / port / "made.txt", f"{step.name}/{port} of {root.name}")
        if step.kind == "data":
            write_jsonl(made / "feedback" / "train.jsonl", [{"id": str(i)} for i in range(30)])
            write_jsonl(made / "feedback" / "held_out.jsonl", [{"id": str(i)} for i in range(4)])
        if step.kind == "ppo":
            write_jsonl(made / "figures" / "metrics.jsonl", [{"step": k, "response_length": 2.5} for k in (1, 2)])
        if step.kind == "sample":
            write_jsonl(made / "samples" / "samples.jsonl", [{"replies": [REPLY, REPLY]}, {"replies": [REPLY]}])
        if step.kind == "evaluate":
            after = {"after": REPLY | {"tokens": 7}} if held else {}
            write_jsonl(made / "figures" / "samples.jsonl", [{"id": "e", "prompt": "p", "before": REPLY, **after}])
            found = {"judge": "gold"} | ({"policy": {"kl": 2.0}} if held else {})
            write_atomically(made / "figures" / "evaluation.json", json.dumps(found))
        if done or step.kind != "evaluate":
            folder.store.seal(step, {"seconds": SECONDS[step.kind]})
    return root


WHOLE: dict[str, Any] = {"data": {}, "sft": {}, "reward": {}, "ppo": {"batch": 8}, "evaluate": {}}
ALONE: dict[str, Any] = {"data": {}, "sft": {}, "reward": {}, "evaluate": {}}


def test_a_policys_cost_is_that_of_what_it_is_made_from(tmp_path: Path) -> None:
    ppo = read_outcome(finished(tmp_path / "ppo-s0", WHOLE))
    assert (ppo.method, ppo.seed) == ("ppo", 0)
    assert (ppo.seconds, ppo.labels, ppo.tokens) == (1111.0, 34, 40)
    assert (ppo.kl, ppo.length) == (2.0, 7.0)
    assert ppo.baseline == {"p": REPLY}
    sft = read_outcome(finished(tmp_path / "sft-s0", ALONE, held=False))
    assert (sft.seconds, sft.labels, sft.tokens, sft.kl, sft.baseline) == (11.0, 0, 0, None, None)
    assert sft.replies == {"p": REPLY}


def test_a_policy_that_picks_by_the_reward_costs_the_rewards_labels(tmp_path: Path) -> None:
    stages = ALONE | {"evaluate": {"use": {"against": "sft/policy"}}}
    best = read_outcome(finished(tmp_path / "best-of-n-s0", stages, services={"policy": {"best_of": 8}}))
    assert (best.seconds, best.labels, best.tokens) == (111.0, 34, 0)
    assert best.kl == pytest.approx(best_of_n_kl(8))


def test_sampled_tokens_are_those_of_samples_too(tmp_path: Path) -> None:
    stages = {"data": {}, "sft": {}, "reward": {}, "sample": {}, "label": {}}
    made = plan(RunConfig.model_validate({"name": "x", "stages": stages}))
    assert [step.name for step in behind(made, "label/feedback")] == ["data", "sft", "reward", "sample", "label"]
    assert [step.name for step in behind(made, "sft/policy")] == ["data", "sft"]


def test_a_run_that_is_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"has no finished evaluation; lodestar run .*config\.yaml --resume"):
        read_outcome(finished(tmp_path / "a", WHOLE, done=False))
    with pytest.raises(FailedPrecondition, match="is not a run's folder"):
        read_outcome(tmp_path / "nowhere")


def test_two_runs_of_one_method_and_seed_are_refused(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "x" / "a-s0", WHOLE), finished(tmp_path / "y" / "a-s0", WHOLE)
    with pytest.raises(FailedPrecondition, match="a run of a with seed 0 is there already"):
        read_outcomes([first, second])
