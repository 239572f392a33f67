"""The recipes of AI feedback on a tiny model, by real services: what the judge says is what the reward learns from."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig
from lodestar.crew.inline import run_inline
from lodestar.data.files import read_demonstrations, read_feedback
from lodestar.files import read_json, read_jsonl
from lodestar.recipe.conduct import Wanted
from lodestar.recipe.folder import RunFolder
from lodestar.rewards.models import ScoringModel
from lodestar.rewards.rules import Exchange

pytestmark = pytest.mark.timeout(900)
DATA = {"demonstration_rows": 400, "comparison_rows": 200, "prompt_rows": 100, "max_prompt_tokens": 32}
MODEL = {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 160}}
BRIEF = {"epochs": 2, "batch_tokens": 512, "evaluations_per_epoch": 1, "learning_rate": 5e-3}
JUDGED = {"prompts": 16, "best_of": [], "temperatures": [], "max_tokens": 16}
PPO = {"steps": 2, "batch": 16, "max_tokens": 16, "epochs": 1, "running": {"every": 0}}
LAW = "helpful: [{name: end, critique: what is wrong, revision: so it is}]"


def config(recipe: str, **more: Any) -> RunConfig:
    stages = {"data": DATA, "sft": BRIEF, "reward": BRIEF, "evaluate": JUDGED, **more}
    return RunConfig.model_validate({"name": "t", "seed": 3, "recipe": recipe, "model": MODEL, "stages": stages})


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with data, SFT and a reward model of what people said."""
    root = tmp_path_factory.mktemp("begun") / "run"
    run_inline(config("constitutional"), root=root, wanted=Wanted(until="reward"))
    return root


def differences(folder: RunFolder, artifact: str, rows: list[tuple[str, tuple[str, str]]]) -> list[float]:
    """Scores of the first reply less those of the second."""
    model = ScoringModel.load(str(folder.store.path(artifact)), dtype="float32", device="cpu")
    told = model.encode([Exchange(prompt, reply) for prompt, replies in rows for reply in replies])
    scores = model.scores(told, alone=False, batch_tokens=4096)[:, 0].tolist()
    return [first - second for first, second in zip(scores[::2], scores[1::2], strict=True)]


def test_rlaif_climbs_a_reward_that_learned_from_the_judge_alone(begun: Path, tmp_path: Path) -> None:
    root = tmp_path / "t"
    shutil.copytree(begun, root)
    (root / "reward").rename(root / "judge")  # the recipe's judge is the same stage by another name
    sampled = {"prompts": 80, "max_tokens": 16}
    label = {"judge": {"shared": 20}, "held_out_fraction": 0.2}
    run = config("rlaif", judge=BRIEF, sample=sampled, label=label, ppo=PPO)
    folder = run_inline(run, root=root)
    seals = [read_json(root / name / "seal.json") for name in ("judge", "reward")]
    assert seals[0]["made"] == read_json(begun / "reward" / "seal.json")["made"], "made once"
    assert folder.plan.step("reward").inputs["feedback"] == ("label/feedback",)
    assert folder.plan.step("ppo").inputs["reward"] == ("reward/reward",)

    splits = {
        split: read_feedback(folder.store.path("label/feedback") / f"{split}.jsonl")
        for split in ("train", "held_out", "evaluation")
    }
    rows = [row for of in splits.values() for row in of]
    labels = [row.verdict[0].label for row in rows]  # type: ignore[index]
    pairs = [(row.prompt, (row.completions[0], row.completions[1])) for row in rows]
    exact = [1 / (1 + math.exp(-gap)) for gap in differences(folder, "judge/reward", pairs)]
    assert labels == pytest.approx(exact, abs=1e-4)
    assert {row.annotator for row in rows} == {"judge"}
    assert all(row.gold is not None for row in rows)

    found = read_json(root / "label" / "figures" / "label.json")
    shared = found["shared"]
    assert shared["kappa"]["value"] == pytest.approx(2 * shared["agreement"]["value"] - 1)
    assert 0 < shared["n"] <= 20
    fit = read_json(root / "reward" / "figures" / "fit.json")
    assert fit["best"]["held_out_loss"] < fit["history"][0]["held_out_loss"], "it learns what the judge says"
    assert len(read_jsonl(root / "ppo" / "figures" / "metrics.jsonl")) == 2
    assert f"of {shared['n']} pairs that both judged" in (root / "report.html").read_text()


def test_constitutional_ai_goes_on_with_sft_on_the_last_revisions(begun: Path, tmp_path: Path) -> None:
    root, law = tmp_path / "t", tmp_path / "law.yaml"
    shutil.copytree(begun, root)
    law.write_text(LAW)
    critique = {"prompts": 80, "rounds": 1, "max_tokens": 36, "form": "text"}
    told = {**critique, "aspect": "helpful", "constitution": str(law)}
    folder = run_inline(config("constitutional", critique=told, revised=BRIEF), root=root)
    said = {row["id"]: row for row in read_jsonl(root / "critique" / "figures" / "critiques.jsonl")}
    shown = folder.store.path("critique/demonstrations")
    made = [row for split in ("train", "held_out") for row in read_demonstrations(shown / f"{split}.jsonl")]
    assert {row.id for row in made} == {name for name, row in said.items() if not row["why"]}
    assert all(row.completion == said[row.id]["rounds"][-1]["revision"] == said[row.id]["revision"] for row in made)
    figures = read_json(root / "critique" / "figures" / "critique.json")
    assert figures["left_out"] == 80 - len(made)
    assert figures["principles"] == {"end": sum(len(row["rounds"]) for row in said.values())}
    fit = read_json(root / "revised" / "figures" / "fit.json")
    assert fit["best"]["held_out_loss"] < fit["history"][0]["held_out_loss"], "SFT learns the revisions"
    found = read_json(root / "evaluate" / "figures" / "evaluation.json")
    assert found["method"] == "constitutional AI"
