"""Pairs on a five-step scale with named evaluators (Wang et al. 2023, open-instruct)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, one_of, user
from lodestar.data.verdicts import Row

_GRADES = {
    "a-is-better": (1.0, 2),
    "a-is-slightly-better": (1.0, 1),
    "tie": (0.5, 0),
    "b-is-slightly-better": (0.0, 1),
    "b-is-better": (0.0, 2),
}


def _convert(row: Row) -> Iterator[Converted]:
    label, strength = one_of(row.get("preference"), "preference", _GRADES)
    accepted = [row.get(f"completion_{side}_is_acceptable") for side in "ab"]
    yield {
        "prompt": user(row.get("prompt")),
        "completions": [row["completion_a"], row.get("completion_b")],
        "label": label,
        "strength": strength,
        "annotator": row.get("evaluator", ""),
        "subset": " against ".join(sorted(str(row.get(f"model_{side}")) for side in "ab")),
        "flags": [f"completion {i} unacceptable" for i, answer in enumerate(accepted) if answer == "no"],
    }


FORMATS = (
    Format(
        "open-instruct's evaluations",
        "https://github.com/allenai/open-instruct",
        frozenset({"completion_a", "completion_b", "preference"}),
        _convert,
    ),
)
