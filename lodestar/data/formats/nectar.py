"""Nectar: answers of several models ranked by one (Zhu et al. 2023, Starling)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lodestar.data.formats.base import Converted, Format, need
from lodestar.data.verdicts import Row, number


def _convert(row: Row) -> Iterator[Converted]:
    answers = need(row, "answers", list)
    ranks = [number(answer.get("rank"), f"answers[{i}].rank") for i, answer in enumerate(answers)]
    yield {
        "prompt": row["prompt"],
        "completions": [answer.get("answer") for answer in answers],
        "ranking": by_place(ranks),
    }


def by_place(ranks: list[float]) -> list[Any]:
    """A ranking from places, 1 the best; equal places are ties."""
    order = [[i for i, own in enumerate(ranks) if own == rank] for rank in sorted(set(ranks))]
    return [tied[0] if len(tied) == 1 else tied for tied in order]


FORMATS = (
    Format(
        "Nectar",
        "https://huggingface.co/datasets/berkeley-nest/Nectar",
        frozenset({"prompt", "answers"}),
        _convert,
        told_by=lambda row: isinstance(row["answers"], list) and all("rank" in answer for answer in row["answers"]),
        leaves="the models' names",
    ),
)
