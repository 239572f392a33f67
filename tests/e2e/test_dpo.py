"""The recipe `dpo` as a person runs it: real servers, a reference that is asked once, kills that change nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig
from lodestar.config.load import parse_config
from lodestar.crew.inline import run_with
from lodestar.crew.local import Local
from lodestar.errors import DataError
from lodestar.files import digest, read_json
from lodestar.recipe.conduct import Wanted

BRIEF = {"epochs": 1, "batch_tokens": 2048, "evaluations_per_epoch": 1}
TREE: dict[str, Any] = {
    "recipe": "dpo",
    "seed": 1,
    "deterministic": True,
    "stages": {
        "data": {
            "demonstration_rows": 200,
            "comparison_rows": 200,
            "max_prompt_tokens": 48,
            "evaluation_rows": 16,
            "prompt_rows": 60,
        },
        "sft": BRIEF,
        "reward": BRIEF,
        "dpo": {"epochs": 3, "batch_tokens": 1024, "evaluations_per_epoch": 2, "learning_rate": 2e-3},
        "evaluate": {"best_of": [2], "max_tokens": 16, "temperatures": [0.7]},
    },
    "model": {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 128}},
}


def config(folder: Path, name: str, **dpo: Any) -> RunConfig:
    tree = {**TREE, "name": name, "runs_dir": str(folder)}
    tree["stages"] = {**TREE["stages"], "dpo": {**TREE["stages"]["dpo"], **dpo}}
    return parse_config(tree)


@pytest.mark.timeout(150)
def test_the_recipe_optimises_what_it_says_and_is_evaluated(tmp_path: Path) -> None:
    folder = run_with(Local, config(tmp_path, "whole"))
    root = folder.root
    fitted = read_json(root / "dpo" / "figures" / "fit.json")
    first, best = fitted["history"][0], fitted["best"]
    assert first["held_out_margin"] == pytest.approx(0, abs=1e-4)
    assert best["held_out_loss"] < first["held_out_loss"] - 0.01
    assert best["held_out_accuracy"] > 0.6
    assert best["held_out_margin"] > 0
    seal = read_json(root / "dpo" / "seal.json")
    assert seal["asked"]["inputs"]["reference"] == seal["asked"]["inputs"]["policy"] == ["sft/policy"]
    assert [service["name"] for service in seal["services"] if service["rpcs"]] == ["reference-0"] or (
        "reference-0" in [service["name"] for service in seal["services"]]
    )
    (kept,) = (root / "cache" / "reference").glob("*-alone.jsonl")
    rows = len(kept.read_text().splitlines())
    assert rows > 200
    evaluation = read_json(root / "evaluate" / "figures" / "evaluation.json")
    assert evaluation["win_rate"]["n"] == 16
    assert "best_of_2" in json.dumps(evaluation["rivals"])
    page = (root / "report.html").read_text()
    assert "After DPO the policy" in page
    assert "steps of PPO" not in page

    before = kept.stat().st_mtime_ns
    policy = digest(root / "dpo" / "policy")
    again = run_with(Local, config(tmp_path, "whole", beta=0.2), wanted=Wanted(begin="dpo", until="dpo"))
    assert kept.stat().st_mtime_ns == before, "another β asks the reference for nothing"
    assert digest(again.root / "dpo" / "policy") != policy


@pytest.mark.timeout(150)
def test_a_killed_stage_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Killed while it asks, and while it trains."""
    whole = run_with(Local, config(tmp_path, "whole"), wanted=Wanted(until="dpo"))
    moments = iter(("cache/reference", "dpo/unfinished/state.pt"))
    waiting = [next(moments)]

    def strike(crew: Local) -> None:
        members = [member for member in crew.fleet.members if member.name == "dpo" and member.child.alive]
        place = tmp_path / "broken" / waiting[0] if waiting else None
        if members and place is not None and place.exists():
            os.kill(members[0].child.pid, signal.SIGKILL)
            waiting[:] = [moment for moment in (next(moments, None),) if moment]

    broken = run_with(Local, config(tmp_path, "broken"), wanted=Wanted(until="dpo"), look=strike)
    assert not waiting, f"never struck: {waiting}"
    assert digest(broken.root / "dpo" / "policy") == digest(whole.root / "dpo" / "policy")
    assert read_json(broken.root / "dpo" / "seal.json")["restarts"]["dpo"] == 2


@pytest.mark.timeout(100)
def test_feedback_without_a_loser_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    folder = run_with(Local, config(tmp_path, "ties"), wanted=Wanted(until="reward"))
    given = tmp_path / "ties-only"
    given.mkdir()
    for split in ("train", "held_out", "evaluation"):
        row = {"prompt": "tell", "completions": ["a", "b"], "label": 0.5}
        (given / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    tree = {
        "name": "alone",
        "runs_dir": str(tmp_path),
        "model": {"path": str(folder.root / "sft" / "policy")},
        "given": {"feedback": str(given)},
        "stages": {"dpo": {}},
    }
    with pytest.raises(DataError, match="none of 1 rows has a loser"):
        from lodestar.crew.inline import run_inline

        run_inline(parse_config(tree))
