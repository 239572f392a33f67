"""Rated outputs, one per row: UniEval's topical-chat and data-to-text files (Zhong et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, user
from lodestar.data.verdicts import Row

_TOPICAL = {
    "understandability": [0, 1],
    "naturalness": [1, 3],
    "coherence": [1, 3],
    "engagingness": [1, 3],
    "groundedness": [0, 1],
    "overall": [1, 5],
}
_DATA_TO_TEXT = {"informativeness": [1, 6], "naturalness": [1, 6], "overall": [1, 6]}


def _convert(row: Row) -> Iterator[Converted]:
    scales = _TOPICAL if "system_id" in row else _DATA_TO_TEXT
    texts = [need(row, name, str) for name in ("context", "source") if row.get(name)]
    ratings = need(row, "scores", dict)
    yield {
        "prompt": user("\n\n".join(text.strip() for text in texts)),
        "completions": [row["system_output"]],
        "ratings": {name: [value] for name, value in ratings.items()},
        "scales": {name: scale for name, scale in scales.items() if name in ratings},
    }


FORMATS = (
    Format(
        "UniEval's ratings",
        "https://github.com/maszhongming/UniEval",
        frozenset({"source", "system_output", "scores"}),
        _convert,
        rated_singly=True,
    ),
)
