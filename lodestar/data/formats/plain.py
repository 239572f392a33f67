"""The project's own rows (lodestar.data.schema), and rows of a kind that is known and of no use here."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, kept, refused
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    yield row  # type: ignore[misc]  # a mapping that sees what is read of it


def _score(row: Row) -> Iterator[Converted]:
    """Pairs whose scores have the names that Argilla's and Capybara's sets give them."""
    yield kept(row) | {"score_chosen": row["chosen_score"], "score_rejected": row["rejected_score"]}


PLAIN = Format("Lodestar's own rows", "lodestar/data/schema.py", frozenset(), _convert)
FORMATS = (
    Format(
        "pairs with scores",
        "https://huggingface.co/datasets/argilla/dpo-mix-7k",
        frozenset({"chosen", "rejected", "chosen_score", "rejected_score"}),
        _score,
    ),
    Format(
        "TRL's stepwise supervision",
        "https://huggingface.co/docs/trl/dataset_formats#stepwise-supervision",
        frozenset({"prompt", "completions", "labels"}),
        refused("is TRL's stepwise supervision, a verdict per step of one answer, which no stage here learns from"),
    ),
    Format(
        "plain text",
        "https://huggingface.co/docs/trl/dataset_formats#language-modeling",
        frozenset({"text"}),
        refused(
            "is plain text to model the language on, without a prompt or a verdict: write it into a text file and "
            "name that in data.text"
        ),
        told_by=lambda row: len(row) == 1,
    ),
)
