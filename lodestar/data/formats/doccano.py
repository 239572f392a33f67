"""doccano's sequence-to-sequence projects: a text and what people wrote for it."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    answers = row.get("label") if "label" in row else row.get("labels")
    if not answers:
        raise ValueError("label is empty: nobody has written an answer for this text")
    question = row.get("text") if "text" in row else row.get("data")
    for i, answer in enumerate(answers):
        yield {"prompt": user(question), "completion": answer, "id": f"{row.get('id', '')}/{i}".removeprefix("/")}


def _told_by(row: Row) -> bool:
    answers = row.get("label", row.get("labels"))
    return ("text" in row or "data" in row) and isinstance(answers, list) and all(isinstance(a, str) for a in answers)


FORMATS = (
    Format(
        "doccano's sequence to sequence",
        "https://doccano.github.io/doccano/tutorial/",
        frozenset({"id"}),
        _convert,
        told_by=_told_by,
    ),
)
