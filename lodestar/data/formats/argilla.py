"""Argilla's pairs with ratings (distilabel), and its records as they are exported."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, asked, refused
from lodestar.data.verdicts import Row, number


def _convert(row: Row) -> Iterator[Converted]:
    """``status`` tie is a tie; the strength is the difference of the two ratings."""
    ratings = row.get("rating")
    strength = 0.0
    if isinstance(ratings, list) and len(ratings) == 2 and None not in ratings:
        first, second = (number(value, f"rating[{i}]") for i, value in enumerate(ratings))
        strength = abs(first - second)
    label = 0.5 if row.get("status") == "tie" else 1.0
    yield {
        "prompt": asked(row, row.get("prompt") if row.get("prompt") is not None else row.get("input")),
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "label": label,
        "strength": strength,
    }


FORMATS = (
    Format(
        "Argilla's rated pairs",
        "https://huggingface.co/datasets/argilla/distilabel-intel-orca-dpo-pairs",
        frozenset({"chosen", "rejected", "rating", "status"}),
        _convert,
        told_by=lambda row: "prompt" in row or "input" in row,
    ),
    Format(
        "Argilla records",
        "https://docs.argilla.io/latest/how_to_guides/import_export/",
        frozenset({"fields", "responses"}),
        refused(
            "is an Argilla record, whose fields and questions are named by its data set: export it with "
            "to_datasets() and name the columns in data.columns, such as {prompt: instruction, chosen: best}"
        ),
    ),
)
