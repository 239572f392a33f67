"""Two models' replies to the same prompts, side by side before people: a win rate that needs no reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lodestar.evaluation import bounded_mean
from lodestar.files import read_json, write_atomically
from lodestar.labelling.port import Labeller, Question
from lodestar.preference.agreement import krippendorff_alpha
from lodestar.preference.pairs import comparisons
from lodestar.records import Feedback


def pairs_of(kept: Path, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[Question]:
    """A question per prompt, our reply first; the page shows them in an order of its own.

    What was asked is kept in the file ``kept``: a stage that was killed asks the same again, though servers may round
    otherwise by then.
    """
    if not kept.exists():
        rows = list(zip(prompts, ours, theirs, strict=True))
        write_atomically(kept, json.dumps({"pairs": rows}))
    rows = read_json(kept)["pairs"]
    return [Question(str(number), prompt, (one, other)) for number, (prompt, one, other) in enumerate(rows, 1)]


def versus(questions: Sequence[Question], labeller: Labeller, progress: Callable[[int], object]) -> dict[str, Any]:
    """The share of comparisons that the first replies won, a tie counting ½, with a 95% interval over prompts.

    Replies that are the same are a tie that nobody is asked about. ``{"value", "low", "high", "n", "alike",
    "annotators", "alpha"}``: n of answers and of prompts whose replies were alike; alpha is Krippendorff's, nominal,
    None where nobody judged what another did.

    Raises:
        LodestarError: as Labeller.
    """
    asked = [one for one in questions if len(set(one.replies)) == 2]
    said = labeller.label(asked, progress) if asked else []
    found = _outcomes(asked, said)
    alike = [(one.id, 0.5) for one in questions if len(set(one.replies)) < 2]
    both = [(name, value) for name, values in found.items() for value in values] + alike
    rate = bounded_mean([value for _, value in both], [name for name, _ in both])
    return asdict(rate) | {
        "alike": len(alike),
        "annotators": len({row.annotator for row in said}),
        "alpha": krippendorff_alpha(found.values(), "nominal"),
    }


def _outcomes(asked: Sequence[Question], said: Sequence[Feedback]) -> Mapping[str, list[float]]:
    """Question's id → what each person said: 1 our reply is better, 0 the other, ½ neither."""
    ids = {(one.prompt, one.replies): one.id for one in asked}
    found: dict[str, list[float]] = {}
    for row in said:
        for one in comparisons([row]):
            ours = row.completions[0] == one.completions[0]
            value = 0.5 if one.label == 0.5 else float((one.label > 0.5) == ours)
            found.setdefault(ids[row.prompt, row.completions], []).append(value)
    return found
