"""UltraFeedback: four completions, judged by GPT-4 in four aspects and overall (Cui et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, need, user
from lodestar.data.verdicts import Row

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
"""Rated 1 … 5."""
OVERALL = "overall"
"""``overall_score``, 1 … 10, by which completions are compared."""


def _convert(row: Row) -> Iterator[Converted]:
    completions = need(row, "completions", list)
    ratings = {name: [_aspect(one, name) for one in completions] for name in ASPECTS}
    ratings = {name: values for name, values in ratings.items() if any(value is not None for value in values)}
    ratings[OVERALL] = [one.get("overall_score") for one in completions]
    yield {
        "prompt": user(row["instruction"]),
        "completions": [one.get("response") for one in completions],
        "ratings": ratings,
        "scales": {name: [1, 10] if name == OVERALL else [1, 5] for name in ratings},
        "compared_by": [OVERALL],
        "subset": row.get("source"),
    }


def _aspect(completion: Row, name: str) -> Any:
    """``annotations.NAME.Rating``, a number in a string; None where it is N/A."""
    found = (completion.get("annotations") or {}).get(name)
    rating = found.get("Rating") if isinstance(found, dict) else None
    return None if rating in (None, "N/A") else rating


FORMATS = (
    Format(
        "UltraFeedback",
        "https://huggingface.co/datasets/openbmb/UltraFeedback",
        frozenset({"instruction", "completions", "models"}),
        _convert,
        leaves="each completion's principle, its system prompt, critique and rationales",
    ),
)
