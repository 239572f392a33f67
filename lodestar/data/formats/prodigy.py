"""Prodigy's choice interface: a text, options, and those that the annotator accepted."""

from __future__ import annotations

from collections.abc import Iterator

from lodestar.data.formats.base import Converted, Format, need, refused, user
from lodestar.data.verdicts import Row


def _convert(row: Row) -> Iterator[Converted]:
    """What was accepted beats what was not; a task that was not accepted as a whole says nothing."""
    if row.get("answer") != "accept":
        raise ValueError(f"answer is {row.get('answer')!r}: the annotator has not judged this task")
    options, accepted = need(row, "options", list), need(row, "accept", list)
    names = [option.get("id") for option in options]
    if unknown := [name for name in accepted if name not in names]:
        raise ValueError(f"accept has {unknown[0]!r}, the options are {', '.join(map(str, names))}")
    better = [i for i, name in enumerate(names) if name in accepted]
    worse = [i for i, name in enumerate(names) if name not in accepted]
    if not better or not worse:
        raise ValueError(f"accept has {len(better)} of {len(names)} options: some, and not all, must be better")
    yield {
        "prompt": user(row.get("text") if row.get("text") is not None else row.get("prompt")),
        "completions": [option.get("text") for option in options],
        "choices": [{"first": i, "second": j, "label": 1.0} for i in better for j in worse],
        "annotator": str(row.get("_annotator_id") or ""),
    }


FORMATS = (
    Format(
        "Prodigy's choices",
        "https://prodi.gy/docs/api-interfaces#choice",
        frozenset({"options", "accept", "answer"}),
        _convert,
    ),
    Format(
        "Prodigy's decisions",
        "https://prodi.gy/docs/api-interfaces",
        frozenset({"answer", "_input_hash", "_task_hash"}),
        refused(
            "is a Prodigy task without options: which column is the reply depends on its recipe, so write "
            "{prompt, completion, label: true or false} rows, or use the choice interface"
        ),
    ),
)
