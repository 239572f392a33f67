"""Verdicts on single replies, read from the feedback that a stage takes: what binary methods learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestar.recipe.stage import Bench

if TYPE_CHECKING:
    from lodestar.preference.approval import Verdict


def verdicts_of(bench: Bench) -> dict[str, list[Verdict]]:
    """``train`` and ``held_out`` verdicts of all feedback of the port ``feedback``; folders without rows are passed."""
    from lodestar.data.files import read_feedback
    from lodestar.preference.approval import verdicts

    folders = [folder for folder in bench.take_all("feedback") if any(folder.iterdir())]
    return {
        split: verdicts([row for folder in folders for row in read_feedback(folder / f"{split}.jsonl")])
        for split in ("train", "held_out")
    }
