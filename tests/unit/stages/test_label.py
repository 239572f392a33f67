"""The label stage, run in this process on samples that are there already."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig
from lodestar.crew.inline import run_inline
from lodestar.data.files import read_feedback
from lodestar.data.world import every_request, write
from lodestar.data.world.replies import WRITERS
from lodestar.files import read_json, write_jsonl

PROMPTS = 30


def samples(folder: Path, *, members: int) -> Path:
    """Four replies to each prompt, scored by an ensemble where it has members."""
    rng = random.Random(0)
    rows = []
    for number, request in enumerate(every_request()[:PROMPTS]):
        replies: list[dict[str, Any]] = [
            {"text": write(request, rng.choice(WRITERS), rng).text, "score": rng.gauss(0, 1)} for _ in range(4)
        ]
        for reply in replies if members else ():
            reply["members"] = [reply["score"] + rng.gauss(0, 1) for _ in range(members)]
        rows.append({"id": f"p{number}", "ticket": f"0.{number}.0", "prompt": request.text, "replies": replies})
    write_jsonl(folder / "samples.jsonl", rows)
    return folder


@pytest.mark.parametrize(
    "chosen", [{}, {"choose": "uncertain"}, {"choose": "bald"}, {"choose": "volume_removal", "diverse": True}]
)
def test_gold_answers_what_the_chooser_asks(chosen: dict[str, Any], tmp_path: Path) -> None:
    run = RunConfig.model_validate(
        {
            "name": "t",
            "given": {"samples": str(samples(tmp_path / "given", members=3))},
            "stages": {"label": {"by": "gold", "budget": 20, "held_out_fraction": 0.3, **chosen}},
        }
    )
    root = run_inline(run, root=tmp_path / "t").root
    found = read_json(root / "label" / "figures" / "label.json")
    assert (found["by"], found["choose"], found["questions"]) == ("gold", chosen.get("choose", "random"), 20)
    splits = ("train", "held_out", "evaluation")
    rows = [row for split in splits for row in read_feedback(root / "label" / "feedback" / f"{split}.jsonl")]
    assert len({row.prompt for row in rows}) == 20, "every prompt gets one before any gets a second"
    assert all(row.annotator == "gold" for row in rows)
