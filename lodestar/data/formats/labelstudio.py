"""Label Studio's pairwise template, exported as JSON-MIN (a flat row) or as JSON (tasks with annotations)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lodestar.data.formats.base import Converted, Format, need, one_of, pair, user
from lodestar.data.verdicts import Row

_LABELS = {"left": 1.0, "right": 0.0, "tie": 0.5, "equal": 0.5}
_TEXTS = (("answer1", "answer2"), ("answer_1", "answer_2"), ("text1", "text2"), ("response1", "response2"))


def _flat(row: Row) -> Iterator[Converted]:
    name = next(name for name, value in row.items() if _is_choice(value))
    yield _pair(row, row[name]["selected"], row.get("annotator"), row.get("id"))


def _tasks(row: Row) -> Iterator[Converted]:
    data = need(row, "data", dict)
    annotations = need(row, "annotations", list)
    if not annotations:
        yield ValueError("annotations is empty: nobody has judged this task")
    for i, annotation in enumerate(annotations):
        if annotation.get("was_cancelled"):
            yield ValueError(f"annotations[{i}] was skipped by its annotator")
            continue
        results = [result for result in annotation.get("result") or [] if result.get("type") == "pairwise"]
        if len(results) != 1:
            yield ValueError(f"annotations[{i}] must hold one pairwise result, it has {len(results)}")
            continue
        who = annotation.get("completed_by")
        name = who.get("email") or who.get("id") if isinstance(who, Mapping) else who
        yield _pair(data, results[0].get("value", {}).get("selected"), name, row.get("id"))


def _pair(row: Row, selected: Any, annotator: Any, task: Any) -> dict[str, Any]:
    first, second = _names(row)
    label = one_of(selected, "selected", _LABELS)
    prompt = user(row.get("prompt"))
    return pair(prompt, row[first], row[second], label, annotator=_text(annotator), id=_text(task))


def _names(row: Row) -> tuple[str, str]:
    for names in _TEXTS:
        if set(names) <= row.keys():
            return names
    shown = " or ".join(" and ".join(names) for names in _TEXTS)
    raise ValueError(f"a pairwise task needs prompt with {shown}; it has {', '.join(sorted(row))}")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _is_choice(value: Any) -> bool:
    return isinstance(value, Mapping) and "selected" in value


FORMATS = (
    Format(
        "Label Studio's pairs (JSON-MIN)",
        "https://labelstud.io/guide/export#JSON_MIN",
        frozenset({"prompt"}),
        _flat,
        told_by=lambda row: any(map(_is_choice, row.values())),
    ),
    Format(
        "Label Studio's pairs (JSON)",
        "https://labelstud.io/guide/export#JSON",
        frozenset({"data", "annotations"}),
        _tasks,
    ),
)
