"""The pipeline is written once: six faults of when it was written three times, seen through the commands alone.

Nothing of the recipe is imported here, so that the same tests can be held against a tree of before it, where each of
them fails: ``LODESTAR_TREE=…/332280e pytest tests/e2e/test_one_pipeline.py``.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("LODESTAR_TREE", ROOT))
"""The tree that is tested."""
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"demonstration_rows": 300, "comparison_rows": 300, "prompt_rows": 200, "max_prompt_tokens": 48},
    "model": {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "context_tokens": 128}},
    "sft": {"epochs": 0.2, "evaluations_per_epoch": 1},
    "reward_model": {"epochs": 0.2, "evaluations_per_epoch": 1},
    "ppo": {"steps": 1, "batch": 8, "max_tokens": 16, "epochs": 1},
}
rendered = pytest.mark.skipif(
    not any(Path(p, "kubectl").exists() for p in os.environ["PATH"].split(":")), reason="no kubectl"
)


def lodestar(folder: Path, command: str, config: dict[str, Any]) -> str:
    """What a command says, with the YAML of before recipes that both trees read."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**config, "runs_dir": str(folder)}))
    paths = os.pathsep.join(str(TREE / part) for part in ("", "services", "kernels"))
    done = subprocess.run(
        [sys.executable, "-c", "from lodestar.cli import main; main()", *command.format(path).split()],
        cwd=TREE, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def test_training_sft_makes_the_language_model_that_was_asked_for_first(tmp_path: Path) -> None:
    said = lodestar(tmp_path, "train sft {} --plain", TINY | {"pretrain": {"epochs": 0.2, "evaluations_per_epoch": 1}})
    assert re.search(r"pretrain: done.*sft: done", said, re.DOTALL), said


def test_training_a_reward_model_trains_the_model_that_it_starts_from_first(tmp_path: Path) -> None:
    said = lodestar(tmp_path, "train reward {} --plain", TINY)
    assert re.search(r"sft: done.*reward: done", said, re.DOTALL), said


@rendered
def test_a_model_of_ones_own_waits_for_no_sft_on_kubernetes(tmp_path: Path) -> None:
    config = without(TINY, "sft") | {"sft": None, "model": {"path": "org/mine"}}
    said = lodestar(tmp_path, "submit {} --dry-run", config)
    assert not re.search(r"train[- ]sft|models/sft", said)


@rendered
def test_a_reward_of_rules_trains_no_model_on_kubernetes(tmp_path: Path) -> None:
    rules = {"sources": [{"name": "ended", "kind": "rule", "rule": "ended"}]}
    config = without(TINY, "reward_model") | {"reward": rules, "ppo": TINY["ppo"] | {"critic": {"init": "policy"}}}
    said = lodestar(tmp_path, "submit {} --dry-run", config)
    assert not re.search(r"train[- ]reward|models/reward", said)


@rendered
def test_the_cluster_conducts_the_plan_with_its_evaluation_and_report(tmp_path: Path) -> None:
    plan = lodestar(tmp_path, "config check {}", TINY)
    assert re.search(r"ppo.*evaluate.*report", plan, re.DOTALL), plan
    assert re.search(
        r"command:.*\n?.*conduct|- conduct\b|lodestar conduct", lodestar(tmp_path, "submit {} --dry-run", TINY)
    )


def test_no_service_reads_a_runs_configuration() -> None:
    readers = [
        str(path.relative_to(TREE))
        for path in (TREE / "services").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.alias)
        and (getattr(node, "id", None) or getattr(node, "name", "")) == "RunConfig"
    ]
    assert not readers


def test_a_stages_name_stands_in_its_own_file_and_in_recipes() -> None:
    """Beside its own training a picture's caption and the translation of older YAML name it."""
    named = [
        str(path.relative_to(TREE))
        for path in (TREE / "lodestar").rglob("*.py")
        if '"pretrain"' in path.read_text() and not {"stages", "train"} & set(path.parts)
    ]
    assert sorted(named) == ["lodestar/recipe/written.py", "lodestar/report/figures.py"]
