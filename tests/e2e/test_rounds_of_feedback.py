"""Two rounds of feedback in which the reward ensemble of the first says what people are asked in the second, and people
who judge what came of it.

The first round and the second's samples are made once by real services; each chooser goes on from there.
The choosers' own mathematics is in tests/unit/labelling/test_active_pairs.py and tests/unit/preference/test_active.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import httpx2 as httpx
import pytest

from lodestar.config import RunConfig
from lodestar.crew.inline import run_inline
from lodestar.data.files import read_feedback
from lodestar.files import read_json, read_jsonl
from lodestar.labelling.choose import ActivePairs, UncertainPairs
from lodestar.recipe.conduct import Wanted
from tests.services.feedback.processes import answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BRIEF = {"epochs": 4, "batch_tokens": 512, "evaluations_per_epoch": 1, "learning_rate": 5e-3}
DATA = {"demonstration_rows": 1000, "comparison_rows": 60, "prompt_rows": 64, "max_prompt_tokens": 32}
MODEL = {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 96}}
ENSEMBLE = {"reward": {"sources": [{"name": "mine", "heads": "ensemble"}]}}
SAMPLE = {"n": 4, "prompts": 24, "batch": 24, "max_tokens": 16}
PPO = {"steps": 1, "batch": 8, "max_tokens": 16, "critic": {"init": "policy"}, "running": {"every": 0}}
BUDGET = 12


def config(**last: Any) -> RunConfig:
    """Two rounds by hand, so that the second's choice is not the first's too."""
    reward = {**BRIEF, "use": {"policy": "sft/policy"}, "ensemble": 4, "ensemble_of": last.pop("of", "heads")}
    stages = {
        "data": DATA, "sft": BRIEF, "sample": SAMPLE, "label": {"budget": 48}, "reward": reward, "ppo": PPO,
        "sample-2": {"kind": "sample", **SAMPLE}, "label-2": {"kind": "label", "budget": BUDGET, **last},
        "reward-2": {"kind": "reward", **reward}, "ppo-2": {"kind": "ppo", **PPO},
        "evaluate": {
            "use": {"policy": "ppo/policy", "reward": "reward/reward"}, "prompts": 16, "best_of": [],
            "temperatures": [], "max_tokens": 16, "people": {}, "people_prompts": 6,
        },
    }  # fmt: skip
    return RunConfig.model_validate({"name": "t", "seed": 3, "model": MODEL, "stages": stages, "services": ENSEMBLE})


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the first round, and the second's samples, scored by four heads."""
    root = tmp_path_factory.mktemp("begun") / "run"
    run_inline(config(), root=root, wanted=Wanted(until="sample-2"))
    return root


def asked(root: Path, label: str) -> set[tuple[str, frozenset[str]]]:
    splits = ("train", "held_out", "evaluation")
    rows = [row for name in splits for row in read_feedback(root / label / "feedback" / f"{name}.jsonl")]
    return {(row.prompt, frozenset(row.completions)) for row in rows}


def test_samples_carry_what_each_member_says(begun: Path) -> None:
    first, second = (read_jsonl(begun / name / "samples" / "samples.jsonl") for name in ("sample", "sample-2"))
    assert all("members" not in reply and reply["score"] is None for row in first for reply in row["replies"])
    members = [(reply["members"], reply["score"]) for row in second for reply in row["replies"]]
    assert all(len(found) == 4 and fmean(found) == pytest.approx(score, abs=1e-4) for found, score in members)
    assert fmean(pstdev(found) for found, _ in members) > 0.01, "heads of another bootstrap each disagree"


@pytest.mark.parametrize(
    "chosen",
    [
        {"choose": "uncertain"},
        {"choose": "disagreement"},
        {"choose": "bald"},
        {"choose": "bald", "diverse": True},
        {"choose": "volume_removal"},
        {"choose": "volume_removal", "diverse": True},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_the_second_round_asks_what_its_chooser_would(chosen: dict[str, Any], begun: Path, tmp_path: Path) -> None:
    root = tmp_path / "t"
    shutil.copytree(begun, root)
    whole = chosen == {"choose": "bald", "diverse": True}
    run_inline(config(**chosen), root=root, wanted=Wanted(until="ppo-2" if whole else "reward-2"))
    samples = read_jsonl(root / "sample-2" / "samples" / "samples.jsonl")
    name = chosen["choose"]
    chooser = UncertainPairs() if name == "uncertain" else ActivePairs(name, diverse="diverse" in chosen)
    found = asked(root, "label-2")
    assert found == {(one.prompt, frozenset(one.replies)) for one in chooser.choose(samples, BUDGET, 0)}
    assert len(found) == BUDGET
    assert read_json(root / "label-2" / "figures" / "label.json")["choose"] == name
    if name == "disagreement":
        assert gap_of(found, samples) > gap_of({pair for row in samples for pair in pairs_of(row)}, samples)


def pairs_of(row: dict[str, Any]) -> list[tuple[str, frozenset[str]]]:
    texts = {reply["text"] for reply in row["replies"] if reply["text"].strip()}
    return [(row["prompt"], frozenset(pair)) for pair in combinations(sorted(texts), 2)]


def gap_of(pairs: set[tuple[str, frozenset[str]]], samples: list[dict[str, Any]]) -> float:
    """Mean standard deviation of the members' margins."""
    members = {(row["prompt"], reply["text"]): reply["members"] for row in samples for reply in row["replies"]}
    both = [[members[prompt, text] for text in texts] for prompt, texts in pairs]
    return fmean(pstdev(x - y for x, y in zip(first, second, strict=True)) for first, second in both)


def test_of_rounds_the_first_chooses_at_random_and_says_so(begun: Path, tmp_path: Path) -> None:
    """An ensemble of whole models, served with the members that its training put beside it."""
    reward = {**BRIEF, "use": {"policy": "sft/policy"}, "ensemble": 2, "ensemble_of": "models"}
    label = {"choose": "bald", "budget": BUDGET}
    rounds = {"n": 2, "stages": {"sample": SAMPLE, "label": label, "reward": reward, "ppo": PPO}}
    run = RunConfig.model_validate(
        {
            "name": "t", "seed": 3, "model": MODEL, "services": ENSEMBLE,
            "stages": {"data": DATA, "sft": BRIEF, "rounds": rounds},
        }
    )  # fmt: skip
    root = tmp_path / "t"
    for name in ("data", "sft", "config.yaml"):
        part = begun / name
        shutil.copytree(part, root / name) if part.is_dir() else shutil.copy(part, root / name)
    run_inline(run, root=root, wanted=Wanted(until="r2.label"))
    chosen = [read_json(root / f"r{i}.label" / "figures" / "label.json")["choose"] for i in (1, 2)]
    assert chosen == ["random", "bald"]
    said = (root / "logs" / "r1.label.jsonl").read_text()
    assert "r1.label chooses at random: no reward model has scored r1.sample's replies yet" in said
    samples = read_jsonl(root / "r2.sample" / "samples" / "samples.jsonl")
    assert {len(reply["members"]) for row in samples for reply in row["replies"]} == {2}


class Person(threading.Thread):
    """Comes in when the run's page is there, and says of every pair that the longer reply is better."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self.over = threading.Event()
        self.answered: dict[str, int] = {}
        """By campaign."""

    def run(self) -> None:
        while not (self._folder / "lead.link").exists():
            if self.over.wait(0.1):
                return
        base, _, token = (self._folder / "lead.link").read_text().strip().rpartition("/join/")
        with httpx.Client(base_url=base, timeout=30, follow_redirects=True) as client:
            while not self.over.wait(0.2):
                with contextlib.suppress(httpx.TransportError):  # not listening yet, or between two stages
                    if not client.cookies:
                        client.post("/join", data={"token": token})
                    for campaign in re.findall(r'href="/c/([^"/]+)"', client.get("/").text):
                        self._judge(client, campaign)

    def _judge(self, client: httpx.Client, campaign: str) -> None:
        while len(parts := client.get(f"/c/{campaign}").text.split('class="text" dir="auto">')) == 4:
            first, second = (len(part.partition("</div>")[0].split()) for part in parts[2:])
            answer(client, campaign, "tie" if first == second else "a2" if first > second else "b2")
            self.answered[campaign] = self.answered.get(campaign, 0) + 1


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    made = Person(tmp_path / "t" / "feedback")
    made.start()
    yield made
    made.over.set()
    made.join(30)


def test_people_judge_whether_the_policy_became_better(begun: Path, tmp_path: Path, person: Person) -> None:
    root = tmp_path / "t"
    shutil.copytree(begun, root)
    run_inline(config(), root=root, wanted=Wanted(only="evaluate"))
    found = read_json(root / "evaluate" / "figures" / "evaluation.json")
    rows = read_jsonl(root / "evaluate" / "figures" / "samples.jsonl")[:6]
    lengths = [(len(row["after"]["text"].split()), len(row["before"]["text"].split())) for row in rows]
    outcomes = [0.5 if ours == theirs else float(ours > theirs) for ours, theirs in lengths]
    assert found["people"]["value"] == pytest.approx(fmean(outcomes))
    alike = sum(row["after"]["text"] == row["before"]["text"] for row in rows)
    assert (found["people"]["n"], found["people"]["alike"], found["people"]["annotators"]) == (6, alike, 1)
    assert list(person.answered.values()) == [6 - alike]
    assert found["win_rate"]["n"] == 16, "the judge's rate is of all prompts, as ever"


def test_the_recipe_people_goes_round_and_round_to_its_end(begun: Path, tmp_path: Path, person: Person) -> None:
    judged = {"prompts": 16, "best_of": [], "temperatures": [], "max_tokens": 16}
    inner = {
        "sample": SAMPLE, "label": {"budget": BUDGET}, "reward": BRIEF,
        "ppo": {**PPO, "critic": {"init": "reward"}}, "evaluate": judged,
    }  # fmt: skip
    stages = {"data": DATA, "sft": BRIEF, "rounds": {"stages": inner}, "evaluate": judged}
    run = RunConfig.model_validate({"name": "t", "seed": 3, "recipe": "people", "model": MODEL, "stages": stages})
    root = tmp_path / "t"
    for name in ("data", "sft"):
        shutil.copytree(begun / name, root / name)
    folder = run_inline(run, root=root)
    assert sorted(person.answered.values()) == [BUDGET, BUDGET]
    assert [name.rpartition(".")[0] for name in sorted(person.answered)] == ["t.r1.label", "t.r2.label"]
    steps = {step.name: step.inputs for step in folder.plan.steps}
    assert steps["r2.sample"]["policy"] == ("r1.ppo/policy",)
    assert steps["r2.reward"]["feedback"] == ("data/feedback", "r1.label/feedback", "r2.label/feedback")
    for number in (1, 2):
        rows = asked(root, f"r{number}.label")
        texts = {
            (row["prompt"], one["text"])
            for row in read_jsonl(folder.store.path(f"r{number}.sample/samples") / "samples.jsonl")
            for one in row["replies"]
        }
        assert len(rows) == BUDGET
        assert {(prompt, text) for prompt, pair in rows for text in pair} <= texts
    assert (root / "report.html").exists()
