"""Two aspects under one trunk, weighed differently: what each weight buys of the one and costs of the other.

The policy is the best of eight samples by the weighed reward, and every method draws the same eight: the mean of an
aspect can then only rise with its weight, and that of the other can only fall. That is exact for any reward model.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from lodestar.compare.conduct import conduct
from lodestar.compare.methods import comparison
from lodestar.compare.runs import read_outcome
from lodestar.compare.write import write_comparison
from lodestar.data.files import write_feedback
from lodestar.data.world import AVERAGE, CARELESS, every_request, gold_parts, write
from lodestar.local.view import view_for
from lodestar.records import Feedback, Ratings
from tests.e2e.test_methods import BRIEF, DATA, JUDGED, MODEL

WEIGHTS = {"harmless": 0.0, "half": 0.5, "helpful": 1.0}
SCALES = {"helpful": (-2.0, 4.0), "harmless": (-4.0, 0.0)}


def rated(folder: Path) -> Path:
    """Ratings of written replies: what they give to whoever asks, and what they would rather not have said."""
    rng = random.Random(5)
    requests = rng.sample(every_request(), 360)
    rows = []
    for i, request in enumerate(requests):
        replies = (write(request, AVERAGE, rng).text, write(request, CARELESS, rng).text)
        parts = [gold_parts(request.text, reply) for reply in replies]
        helpful = [of["facts"] + of["tone"] + of["name"] for of in parts]
        harmless = [of["flattery"] + of["dodging"] + of["hedging"] for of in parts]
        values = {"helpful": helpful, "harmless": harmless}
        aspects = {n: tuple(min(max(v, SCALES[n][0]), SCALES[n][1]) for v in of) for n, of in values.items()}
        rows.append(Feedback(request.text, replies, Ratings(aspects, SCALES), f"r{i}", "ada"))
    for split, part in (("train", rows[:280]), ("held_out", rows[280:320]), ("evaluation", rows[320:])):
        write_feedback(folder / f"{split}.jsonl", part)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_weights_swept_walk_along_the_front(tmp_path: Path) -> None:
    def sources(weight: float) -> dict[str, object]:
        heads = {"helpful": weight, "harmless": 1 - weight}
        return {"recipe": "best-of-n", "services": {"reward": {"sources": [{"name": "reward", "heads": heads}]}}}

    reward = {**BRIEF, "aspects": list(SCALES), "use": {"feedback": "given/feedback"}}
    tree = {
        "name": "hhh",
        "runs_dir": str(tmp_path),
        "seed": 3,
        "model": MODEL,
        "given": {"feedback": str(rated(tmp_path / "rated"))},
        "stages": {"data": DATA, "sft": BRIEF, "reward": reward, "evaluate": JUDGED},
        "services": {"policy": {"best_of": 8}},
        "compare": {name: sources(weight) for name, weight in WEIGHTS.items()},
    }
    file = tmp_path / "hhh.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    asked = comparison(file, [], 1)
    went = conduct(asked, view_for(True), lambda _: None)
    assert went.failed == {}
    outcomes = [read_outcome(entry.root, entry.method) for entry in asked.entries]
    found = write_comparison(asked.root, "hhh", outcomes)
    of = {row["method"]: {name: one["value"] for name, one in row["aspects"].items()} for row in found["rows"]}
    helpful, harmless = ([of[name][aspect] for name in WEIGHTS] for aspect in ("helpful", "harmless"))
    assert helpful == sorted(helpful)
    assert harmless == sorted(harmless, reverse=True)
    assert helpful[0] < helpful[-1]
    (pair,) = found["trade_offs"]
    assert (pair["x"], pair["y"], pair["front"]) == ("helpful", "harmless", list(WEIGHTS))
    assert "Harmless against helpful" in (asked.root / "compare.html").read_text()
    starts = [one.baseline_aspects["helpful"] for one in outcomes]
    assert starts == pytest.approx([starts[0]] * 3, abs=1e-6), "the start model is the same, whatever is weighed"
