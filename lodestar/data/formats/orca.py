"""Intel's Orca pairs: a system prompt, a question, and two answers."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, asked
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    yield {"prompt": asked(row, row["question"]), "chosen": row["chosen"], "rejected": row["rejected"]}


FORMATS = (
    Format(
        "Orca pairs",
        "https://huggingface.co/datasets/Intel/orca_dpo_pairs",
        frozenset({"question", "chosen", "rejected"}),
        _convert,
    ),
)
