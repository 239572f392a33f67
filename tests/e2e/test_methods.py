"""Every shipped recipe of a method beside PPO, run on a tiny model by real services: what it makes, and what it climbs.

Data, SFT and the reward model are made once; a recipe's run finds them sealed in its folder and goes on from there.
The closed forms are in tests/unit/train/test_conditioned.py and tests/services/policy/test_best_of.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from lodestar.config import RunConfig
from lodestar.crew.inline import run_inline
from lodestar.data.control import Control
from lodestar.data.files import read_demonstrations
from lodestar.errors import ConfigError, DataError
from lodestar.evaluation import best_of_n_kl
from lodestar.files import read_json, read_jsonl
from lodestar.model.loading import load_tokenizer
from lodestar.recipe.conduct import Wanted
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import plan

BRIEF = {"epochs": 4, "batch_tokens": 512, "evaluations_per_epoch": 1, "learning_rate": 5e-3}
DATA = {"demonstration_rows": 2000, "comparison_rows": 300, "prompt_rows": 240, "max_prompt_tokens": 32}
MODEL = {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 96}}
JUDGED = {"prompts": 32, "best_of": [], "temperatures": [], "max_tokens": 32}
GENTLE = {"epochs": 4, "batch_tokens": 1024, "evaluations_per_epoch": 2, "learning_rate": 1e-3}
"""Of a few replies of its own: more would be learned by heart, and weights of the least held-out loss are kept."""
ROUND = {"prompts": 160, "n": 6, "max_tokens": 24}
AND = {"reward": {"sources": [{"name": "and", "kind": "rule", "rule": "pattern", "pattern": r"\band\b"}]}}
"""A reward that a model of 30,000 weights can climb in seconds: 1 for a reply that says two things."""

pytestmark = pytest.mark.timeout(600)


def config(recipe: str, **more: Any) -> RunConfig:
    stages = {"data": DATA, "sft": BRIEF, "reward": BRIEF, "evaluate": JUDGED, **more.pop("stages", {})}
    return RunConfig.model_validate(
        {"name": "t", "seed": 3, "recipe": recipe, "model": MODEL, "stages": stages, **more}
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with data, SFT and reward model done."""
    root = tmp_path_factory.mktemp("begun") / "run"
    run_inline(config("feedme"), root=root, wanted=Wanted(until="reward"))
    return root


def conducted(begun: Path, root: Path, run: RunConfig) -> tuple[RunFolder, dict[str, Any]]:
    """The whole recipe, and what its evaluation found."""
    shutil.copytree(begun, root)
    sealed = (root / "sft" / "seal.json").read_text()
    folder = run_inline(run, root=root)
    assert (root / "sft" / "seal.json").read_text() == sealed
    assert (root / "report.html").exists()
    return folder, read_json(root / "evaluate" / "figures" / "evaluation.json")


def test_best_of_n_is_served_and_judged_against_the_plain_model(begun: Path, tmp_path: Path) -> None:
    few = {"policy": {"best_of": 16, "max_waiting": 64}}  # all prompts at once would be 512 in its queue
    folder, found = conducted(begun, tmp_path / "t", config("best-of-n", services=few))
    assert folder.run.services.policy.best_of == 16
    assert found["reward_after"] > found["reward_before"]
    assert found["policy"]["kl"] == pytest.approx(best_of_n_kl(16), abs=0.01), "the model is the same, the picking not"
    assert found["method"] == "best of 16"


def test_expert_iteration_keeps_the_best_and_its_reward_rises(begun: Path, tmp_path: Path) -> None:
    rounds = {"n": 2, "stages": {"sample": ROUND, "sft": GENTLE}}
    run = config("expert-iteration", services=AND, stages={"reward": None, "rounds": rounds})
    folder, found = conducted(begun, tmp_path / "t", run)
    samples = {row["id"]: row["replies"] for row in read_jsonl(tmp_path / "t/r1.sample/samples/samples.jsonl")}
    shown = folder.store.path("r1.best_of_n/demonstrations")
    kept = [row for split in ("train", "held_out") for row in read_demonstrations(shown / f"{split}.jsonl")]
    for row in kept:
        ended = [one["text"] for one in samples[row.id] if one["finish_reason"] == "eos" and one["text"].strip()]
        good = [text for text in ended if " and " in f" {text} "]
        assert row.completion == (good or ended)[0]
    figures = [read_json(tmp_path / f"t/r{i}.best_of_n/figures/best_of_n.json") for i in (1, 2)]
    assert figures[0]["prompts"] == 160 == len(kept) + figures[0]["left_out"]
    assert figures[0]["best_score"] > figures[0]["score"]
    assert figures[1]["score"] > figures[0]["score"] + 0.05, (
        "the second round's model has learned from the first's best"
    )
    assert found["method"] == "expert iteration"


def test_feedme_goes_on_with_sft_on_what_people_called_good(begun: Path, tmp_path: Path) -> None:
    run = config("feedme", stages={"feedme": GENTLE})
    _, found = conducted(begun, tmp_path / "t", run)
    figures = tmp_path / "t" / "feedme" / "figures"
    fit, good = read_json(figures / "fit.json"), read_json(figures / "verdicts.json")["good"]
    assert good["train"] > 50
    losses = [row["loss"] for row in fit["history"] if "loss" in row]
    assert losses[-1] < losses[0]
    assert "win_rate" in found


def test_reward_conditioning_is_served_under_the_good_token_and_nobody_sees_it(begun: Path, tmp_path: Path) -> None:
    run = config("reward-conditioning", stages={"conditioning": GENTLE})
    folder, found = conducted(begun, tmp_path / "t", run)
    made = folder.store.path("conditioning/policy")
    assert Control.of(load_tokenizer(made)).names == ("<|good|>", "<|bad|>")
    AutoModelForCausalLM.from_pretrained(made)
    fit = read_json(tmp_path / "t/conditioning/figures/fit.json")
    assert fit["best"]["held_out_loss"] < fit["history"][0]["held_out_loss"]
    assert "win_rate" in found
    rows = read_jsonl(tmp_path / "t/evaluate/figures/samples.jsonl")
    assert "<|" not in json.dumps([row["after"]["text"] for row in rows])


def test_quark_sorts_all_samples_so_far_and_explores_under_its_best_token(begun: Path, tmp_path: Path) -> None:
    quark = {**GENTLE, "beta": 0.01, "quantiles": 3}
    rounds = {"n": 2, "stages": {"sample": ROUND, "quark": quark}}
    run = config("quark", services=AND, stages={"reward": None, "rounds": rounds})
    folder, found = conducted(begun, tmp_path / "t", run)
    steps = {step.name: step.inputs for step in folder.plan.steps}
    assert steps["r2.quark"]["reference"] == steps["r1.quark"]["policy"] == ("sft/policy",)
    assert steps["r2.quark"]["samples"] == ("r1.sample/samples", "r2.sample/samples")
    assert steps["r2.sample"]["policy"] == ("r1.quark/policy",)
    names = ("<|reward-3|>", "<|reward-2|>", "<|reward-1|>")
    assert all(Control.of(load_tokenizer(folder.store.path(f"r{i}.quark/policy"))).names == names for i in (1, 2))
    pools = [read_json(tmp_path / f"t/r{i}.quark/figures/quark.json") for i in (1, 2)]
    assert pools[1]["replies"] > pools[0]["replies"]
    assert found["method"] == "Quark"


def test_what_the_methods_cannot_do_is_said_before_or_when_they_begin(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r1\.best_of_n\.n: is 9, and r1\.sample makes 4 of each prompt"):
        plan(
            config(
                "expert-iteration", stages={"rounds": {"n": 1, "stages": {"sample": {"n": 4}, "best_of_n": {"n": 9}}}}
            )
        )
    with pytest.raises(ConfigError, match=r"token: must hold \{\} once"):
        plan(config("quark", stages={"rounds": {"n": 1, "stages": {"quark": {"token": "best"}}}}))
    taken = config("reward-conditioning", stages={"conditioning": {**BRIEF, "good": "the"}})
    shutil.copytree(begun, tmp_path / "t")
    with pytest.raises(
        ConfigError, match=r"stages\.conditioning\.good and bad: 'the' is a token of this model already"
    ):
        run_inline(taken, root=tmp_path / "t", wanted=Wanted(until="conditioning"))
    tied = tmp_path / "tied"
    for split in ("train", "held_out", "evaluation"):
        rows = read_jsonl(begun / "data" / "feedback" / f"{split}.jsonl")
        tied.mkdir(exist_ok=True)
        (tied / f"{split}.jsonl").write_text("".join(json.dumps({**row, "label": 0.5}) + "\n" for row in rows[:20]))
    for recipe, said in (("feedme", "is good: every comparison is tied"), ("reward-conditioning", "must be good ones")):
        stage = {"feedme": "feedme", "reward-conditioning": "conditioning"}[recipe]
        run = config(
            recipe,
            given={"feedback": str(tied)},
            stages={
                stage: {"use": {"feedback": "given/feedback"}},
                "reward": {**BRIEF, "use": {"feedback": "data/feedback"}},
            },
        )
        shutil.copytree(begun, tmp_path / recipe)
        with pytest.raises(DataError, match=said):
            run_inline(run, root=tmp_path / recipe, wanted=Wanted(until=stage))
