"""What a comparison asks of each run: the file's options under every recipe, and one evaluation for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lodestar.compare.methods import Comparison, comparison
from lodestar.errors import ConfigError
from lodestar.recipe.written import recipes

FILE: dict[str, Any] = {
    "name": "world",
    "seed": 7,
    "model": {"architecture": {"context_tokens": 96}},
    "stages": {
        "data": {"demonstration_rows": 300, "comparison_rows": 400, "max_prompt_tokens": 32},
        "sft": {"epochs": 1.5},
        "ppo": {"steps": 5, "max_tokens": 36, "learning_rate": 3e-4},
    },
}


def asked(folder: Path, *names: str, seeds: int = 1, overrides: tuple[str, ...] = (), **more: Any) -> Comparison:
    path = folder / "file.yaml"
    path.write_text(yaml.safe_dump({**FILE, "runs_dir": str(folder / "runs"), **more}, sort_keys=False))
    return comparison(path, names, seeds, overrides)


def options(found: Comparison, method: str, stage: str) -> dict[str, Any]:
    entry = next(one for one in found.entries if one.method == method)
    return entry.plan.step(stage).stage.model_dump(mode="json")


def test_every_method_runs_once_per_seed_below_one_folder(tmp_path: Path) -> None:
    found = asked(tmp_path, "instruct-gpt", "sft", seeds=2)
    assert [(one.method, one.seed, one.run.seed) for one in found.entries] == [
        ("instruct-gpt", 7, 7), ("sft", 7, 7), ("instruct-gpt", 8, 8), ("sft", 8, 8),
    ]  # fmt: skip
    assert {one.root for one in found.entries} == {
        tmp_path / "runs" / "world-compare" / f"{method}-s{seed}"
        for method in ("instruct-gpt", "sft")
        for seed in (7, 8)
    }
    assert found.methods == ["instruct-gpt", "sft"]


def test_options_go_to_every_recipe_that_has_the_stage(tmp_path: Path) -> None:
    found = asked(tmp_path, "instruct-gpt", "sft", overrides=("stages.reward.epochs=3", "services.policy.threads=2"))
    for method in found.methods:
        assert options(found, method, "data")["comparison_rows"] == 400
        assert options(found, method, "sft")["epochs"] == 1.5
        assert options(found, method, "reward")["epochs"] == 3
    assert all(one.run.services.policy.threads == 2 for one in found.entries)
    assert options(found, "instruct-gpt", "ppo")["steps"] == 5


def test_options_go_to_stages_inside_rounds_too(tmp_path: Path) -> None:
    ppo = options(asked(tmp_path, "rounds"), "rounds", "r1.ppo")
    assert (ppo["steps"], ppo["learning_rate"], ppo["max_tokens"]) == (5, 3e-4, 36)


def test_all_are_evaluated_with_one_decoding_against_the_sft_model(tmp_path: Path) -> None:
    found = asked(tmp_path, "sft", "instruct-gpt", "rounds")
    for entry in found.entries:
        step = entry.plan.step("evaluate")
        told = options(found, entry.method, "evaluate")
        assert (told["max_tokens"], told["best_of"], told["temperatures"]) == (64, [], [])  # 64: what rounds sample
        assert step.inputs.get("against") == (None if entry.method == "sft" else ("sft/policy",))


def test_what_the_file_says_of_the_evaluation_stands(tmp_path: Path) -> None:
    stages = {**FILE["stages"], "evaluate": {"best_of": [4], "max_tokens": 20, "prompts": 9}}
    found = asked(tmp_path, "sft", "instruct-gpt", stages=stages)
    for method in found.methods:
        told = options(found, method, "evaluate")
        assert (told["best_of"], told["max_tokens"], told["prompts"]) == ([4], 20, 9)


def test_a_method_that_has_less_room_decides_for_all(tmp_path: Path) -> None:
    own = {"short": {"recipe": "sft", "stages": {"evaluate": {"max_tokens": 30}}}, "instruct-gpt": {}}
    found = asked(tmp_path, compare=own)
    assert {options(found, method, "evaluate")["max_tokens"] for method in found.methods} == {30}


def test_a_method_of_the_files_own_is_a_recipe_with_other_options(tmp_path: Path) -> None:
    own = {"sft-5x": {"recipe": "sft", "stages": {"data": {"demonstration_rows": 1500}}}, "sft": {}}
    found = asked(tmp_path, compare=own)
    assert found.methods == ["sft-5x", "sft"]
    assert options(found, "sft-5x", "data")["demonstration_rows"] == 1500
    assert options(found, "sft", "data")["demonstration_rows"] == 300


def test_a_file_of_before_recipes_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("name: old\nsft: {epochs: 2}\nevaluation: {prompts: 5}\n")
    assert options(comparison(path, ["sft"], 1), "sft", "data")["evaluation_rows"] == 5


@pytest.mark.parametrize(
    ("names", "more", "says"),
    [
        (("instructgpt",), {}, r"--recipes: there is no recipe 'instructgpt'; did you mean instruct-gpt\?"),
        (("sft", "sft"), {}, "--recipes: sft stands twice"),
        ((), {}, "--recipes: name the methods to compare"),
        (("sft",), {"stages": {"smpl": {}}}, r"stages.smpl: no recipe has such a stage; did you mean sample\?"),
        (("sft",), {"compare": ["sft"]}, "compare: must map each method to its options"),
        (("mine",), {"compare": {"mine": {}}}, r"compare\.mine\.recipe: must name a recipe; there are"),
        (("mine",), {"compare": {"mine": {"recipe": "dqo"}}}, r"compare\.mine: recipe: there is no recipe 'dqo'"),
        (
            ("mine",),
            {"compare": {"mine": {"recipe": "sft", "stages": {"stf": {}}}}},
            r"compare\.mine\.stages\.stf: recipe sft has no such stage; did you mean sft\?",
        ),
        (("sft",), {"stages": {"sft": {"epocs": 1}}}, r"method sft: .*epocs: unknown option; did you mean epochs"),
        (("sft",), {"stages": {"evaluate": None}}, "sft: ends without a stage evaluate"),
        (("sft",), {"seed": "x"}, "seed: Input should be a valid integer"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    tmp_path: Path, names: tuple[str, ...], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(tmp_path, *names, **({"stages": {}} | more))
    assert not (tmp_path / "runs").exists()


def test_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seeds: must be 1 or more, is 0"):
        asked(tmp_path, "instruct-gpt", seeds=0)


def test_the_benchmarks_file_compares_every_recipe_but_those_with_other_feedback() -> None:
    found = comparison(Path(__file__).parents[3] / "benchmarks" / "compare.yaml", [], 5)
    assert {*found.methods} == {*recipes()} - {"rounds", "people", "rlaif", "constitutional"} | {"sft-5x"}
    assert len(found.entries) == 5 * len(found.methods)
    clocks = [step.name for one in found.entries for step in one.plan.steps if getattr(step.stage, "max_seconds", None)]
    assert not clocks, "what a clock cuts short is not compared"
