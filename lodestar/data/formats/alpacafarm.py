"""AlpacaFarm's preferences of people and of simulated annotators (Dubois et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, joined, one_of, pair, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    """``preference`` is 1 or 2, the better output; AlpacaEval writes 1.5, AlpacaFarm 0 for a draw."""
    label = one_of(row.get("preference"), "preference", {1: 1.0, 2: 0.0, 0: 0.5, 1.5: 0.5})
    yield pair(
        user(joined(row.get("instruction"), row.get("input"))),
        row["output_1"],
        row["output_2"],
        label,
        annotator=row.get("annotator"),
    )


FORMATS = (
    Format(
        "AlpacaFarm",
        "https://huggingface.co/datasets/tatsu-lab/alpaca_farm",
        frozenset({"instruction", "output_1", "output_2", "preference"}),
        _convert,
    ),
)
