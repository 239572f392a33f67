"""The recipe `dpo` as a person runs it: real servers, a reference that is asked once, kills that change nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig
from lodestar.config.load import parse_config
from lodestar.crew.inline import run_inline, run_with
from lodestar.crew.local import Local
from lodestar.errors import DataError
from lodestar.files import digest, read_json, write_jsonl
from lodestar.recipe.conduct import Wanted

BRIEF = {"epochs": 1, "batch_tokens": 2048, "evaluations_per_epoch": 1}
TREE: dict[str, Any] = {
    "name": "tiny",
    "recipe": "dpo",
    "seed": 1,
    "deterministic": True,
    "stages": {
        "data": {
            "demonstration_rows": 120,
            "comparison_rows": 120,
            "max_prompt_tokens": 48,
            "evaluation_rows": 8,
            "prompt_rows": 20,
        },
        "sft": BRIEF,
        "reward": BRIEF,
        "dpo": {"epochs": 8, "batch_tokens": 2048, "evaluations_per_epoch": 1, "learning_rate": 5e-3, "patience": 99},
        "evaluate": {"best_of": [2], "max_tokens": 8, "temperatures": [0.7]},
    },
    "model": {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "context_tokens": 128}},
    "services": {"learner": {"threads": 1}},
}


def config(**dpo: Any) -> RunConfig:
    return parse_config({**TREE, "stages": {**TREE["stages"], "dpo": {**TREE["stages"]["dpo"], **dpo}}})


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done up to DPO."""
    return run_inline(config(), root=tmp_path_factory.mktemp("begun") / "run", wanted=Wanted(until="reward")).root


@pytest.mark.timeout(240)
def test_the_recipe_optimises_what_it_says_and_is_evaluated(begun: Path, tmp_path: Path) -> None:
    root = shutil.copytree(begun, tmp_path / "run")
    run_inline(config(), root=root)
    fitted = read_json(root / "dpo" / "figures" / "fit.json")
    first, last, best = fitted["history"][0], fitted["history"][-1], fitted["best"]
    assert first["held_out_margin"] == pytest.approx(0, abs=1e-4), "the policy is the reference still"
    assert best["held_out_loss"] < first["held_out_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["loss"] < math.log(2) - 0.05
    assert last["accuracy"] > 0.7
    assert last["margin"] > 0.1
    seal = read_json(root / "dpo" / "seal.json")
    assert seal["asked"]["inputs"]["reference"] == seal["asked"]["inputs"]["policy"] == ["sft/policy"]
    assert "reference-0" in [service["name"] for service in seal["services"] if service["rpcs"]]
    (kept,) = (root / "cache" / "reference").glob("*-alone.jsonl")
    rows = len(kept.read_text().splitlines())
    assert rows > 150
    evaluation = read_json(root / "evaluate" / "figures" / "evaluation.json")
    assert evaluation["win_rate"]["n"] == 8
    assert "best_of_2" in json.dumps(evaluation["rivals"])
    page = (root / "report.html").read_text()
    assert "After DPO the policy" in page
    assert "steps of PPO" not in page

    before, policy = kept.read_bytes(), digest(root / "dpo" / "policy")
    run_inline(config(beta=0.2), root=root, wanted=Wanted(begin="dpo", until="dpo"))
    assert kept.read_bytes() == before, "another β asks the reference for nothing"
    assert digest(root / "dpo" / "policy") != policy


@pytest.mark.timeout(240)
def test_a_killed_stage_ends_with_the_weights_of_an_undisturbed_one(begun: Path, tmp_path: Path) -> None:
    """Killed while it asks, and while it trains."""
    wanted = Wanted(until="dpo")
    whole, broken = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "broken"))
    run_with(Local, config(), root=whole, wanted=wanted)
    waiting = [broken / "cache" / "reference", broken / "dpo" / "unfinished" / "state.pt"]

    def strike(crew: Local) -> None:
        members = [member for member in crew.fleet.members if member.name == "dpo" and member.child.alive]
        if members and waiting and waiting[0].exists():
            os.kill(members[0].child.pid, signal.SIGKILL)
            waiting.pop(0)

    run_with(Local, config(), root=broken, wanted=wanted, look=strike)
    assert not waiting, f"never struck: {waiting}"
    assert digest(broken / "dpo" / "policy") == digest(whole / "dpo" / "policy")
    assert read_json(broken / "dpo" / "seal.json")["restarts"]["dpo"] == 2


@pytest.mark.timeout(120)
def test_feedback_without_a_loser_ends_the_run_with_a_sentence(begun: Path, tmp_path: Path) -> None:
    for split in ("train", "held_out", "evaluation"):
        row = {"prompt": "tell", "completions": ["a", "b"], "label": 0.5}
        write_jsonl(tmp_path / "ties" / f"{split}.jsonl", [row])
    alone = parse_config(
        {
            "name": "alone",
            "runs_dir": str(tmp_path),
            "model": {"path": str(begun / "sft" / "policy")},
            "given": {"feedback": str(tmp_path / "ties")},
            "stages": {"dpo": {}},
        }
    )
    with pytest.raises(DataError, match="none of 1 rows has a loser"):
        run_inline(alone)
