"""Questions whose answers are known: practice, which everybody answers first, and gold, which is mixed in unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lodestar.data.files import read_feedback
from lodestar.errors import DataError
from lodestar.feedback import Item, PairVerdict
from lodestar.feedback.records import ItemRole
from lodestar.labelling.options import PeopleOptions
from lodestar.records import Choice, Feedback


def known_items(options: PeopleOptions) -> list[Item]:
    """Practice and gold, as the options' files have them.

    Raises:
        DataError: a file is not there, is empty or damaged, or a row is no decided comparison of two replies.
    """
    return [*_items(options.practice, "practice"), *_items(options.gold, "gold")]


def _items(file: str | None, role: ItemRole) -> Iterator[Item]:
    if file is None:
        return
    path = Path(file)
    for number, row in enumerate(read_feedback(path), 1):
        expected = PairVerdict(label=_label(path, number, row))
        explanation = "\n\n".join(row.flags) if role == "practice" else ""
        yield Item(
            f"{role}-{number}", row.prompt, row.completions, role=role, expected=expected, explanation=explanation
        )


def _label(path: Path, number: int, row: Feedback) -> float:
    match row.verdict:
        case (Choice(label=label, first=first),) if len(row.completions) == 2 and label in (0.0, 0.5, 1.0):
            return label if first == 0 else 1 - label
    raise DataError(
        path, f"row {number} is no comparison of two completions with label 1, 0 or 0.5, and its answer must be known"
    )
