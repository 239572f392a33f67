"""Stanford Human Preferences: two comments on a post and which got more votes (Ethayarajh et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, one_of, pair, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    """``labels`` is 1 where A is preferred; the strength is the ratio of the two scores, 1 or more."""
    yield pair(
        user(row.get("history")),
        row["human_ref_A"],
        row["human_ref_B"],
        one_of(row["labels"], "labels", {1: 1.0, 0: 0.0}),
        strength=row.get("score_ratio"),
        subset=row.get("domain"),
        id=row.get("post_id"),
    )


FORMATS = (
    Format(
        "SHP",
        "https://huggingface.co/datasets/stanfordnlp/SHP",
        frozenset({"history", "human_ref_A", "human_ref_B", "labels"}),
        _convert,
    ),
)
