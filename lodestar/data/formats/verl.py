"""verl's prompts for reinforcement learning: messages, and what a rule needs to judge an answer."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    """``reward_model.ground_truth`` is the column ``answer``; the other columns ride along as they are."""
    truth = need(row, "reward_model", dict).get("ground_truth")
    further = {name: row[name] for name in row if name != "prompt" and row.get(name) is not None}
    yield {"prompt": row["prompt"], "columns": further | ({} if truth is None else {"answer": truth})}


FORMATS = (
    Format(
        "verl's prompts",
        "https://verl.readthedocs.io/en/latest/preparation/prepare_data.html",
        frozenset({"data_source", "prompt", "reward_model"}),
        _convert,
    ),
)
