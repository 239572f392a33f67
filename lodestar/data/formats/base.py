"""What a format is, and what its converters share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lodestar.data.verdicts import Row, number

Converted = dict[str, Any] | ValueError
"""A row of the schema (lodestar.data.schema), or what is wrong with that part of the source's row."""
SCHEMA = frozenset(
    [
        "prompt",
        "chosen",
        "rejected",
        "completion",
        "completions",
        "messages",
        "label",
        "ranking",
        "choices",
        "ratings",
        "scales",
        "compared_by",
        "strength",
        "score_chosen",
        "score_rejected",
        "id",
        "annotator",
        "subset",
        "flags",
        "gold",
        "family",
        "columns",
    ]
)
"""Columns that rows of the schema may have."""
Numbered = tuple[int, Row]
"""A row with the line where it begins."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one publisher's or tool's rows become ours.

    A row is recognised by its ``keys``, and by ``told_by`` where keys alone do not tell.
    """

    name: str
    address: str
    """Where the format is documented."""
    keys: frozenset[str]
    """Columns that every row has."""
    convert: Callable[[Row], Iterable[Converted]]
    told_by: Callable[[Row], bool] | None = None
    rated_singly: bool = False
    """Rows hold one rated completion each; those of one prompt come together."""
    gather: Callable[[Iterable[Numbered]], Iterator[Numbered]] | None = None
    """Makes whole rows of a file whose rows are parts (messages of a tree); ``convert`` gets those."""
    leaves: str = ""
    """What is in these rows and not used, beyond columns that are never looked at."""

    def knows(self, row: Row) -> bool:
        """Whether the row is of this format."""
        return self.keys <= row.keys() and (self.told_by is None or self.told_by(row))


def user(text: Any) -> list[dict[str, Any]]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def asked(row: Row, question: Any) -> list[dict[str, Any]]:
    """The question after the row's system prompt and the ``[question, answer]`` pairs of its history, if any."""
    messages = []
    if row.get("system") not in (None, ""):
        messages.append({"role": "system", "content": row["system"]})
    for i, turn in enumerate(row.get("history") or []):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise ValueError(f"history[{i}] must be a pair [question, answer]")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages + user(question)


def kept(row: Row, *but: str) -> dict[str, Any]:
    """The columns of the row that the schema has, without some."""
    return {name: row[name] for name in row if name in SCHEMA and name not in but and row.get(name) is not None}


def joined(*texts: Any) -> Any:
    """The texts that are there, an empty line between them; what is no text passes, to be refused by its field."""
    present = [text for text in texts if text not in (None, "")]
    return "\n\n".join(present) if all(isinstance(text, str) for text in present) and present else texts[0]


def pair(prompt: Any, first: Any, second: Any, label: float, **further: Any) -> dict[str, Any]:
    """Two completions and the probability that the first is better; empty further fields are left out."""
    row = {"prompt": prompt, "completions": [first, second], "label": label}
    return row | {name: value for name, value in further.items() if value not in (None, "", [])}


def signed(value: Any, name: str, *, most: float) -> tuple[float, float]:
    """Label and strength of a preference below 0 for the first, above 0 for the second, 0 for a tie."""
    preference = number(value, name)
    if not -most <= preference <= most:
        raise ValueError(f"{name} must be between {-most:g} and {most:g}, got {preference:g}")
    return (0.5 if preference == 0 else float(preference < 0)), abs(preference)


def one_of(value: Any, name: str, labels: Mapping[Any, Any]) -> Any:
    """What a value stands for.

    Raises:
        ValueError: it is none of those known.
    """
    try:
        return labels[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name} must be one of {', '.join(map(str, labels))}, got {value!r}") from None


def need(row: Row, name: str, kind: type, where: str = "") -> Any:
    """A field of a row.

    Raises:
        ValueError: it is missing or of another kind.
    """
    field = f"{where}.{name}" if where else name
    if not isinstance(row, Mapping):
        raise ValueError(f"{where or 'the row'} must be an object, got {type(row).__name__}")
    value = row.get(name)
    if value is None:
        raise ValueError(f"{field} is missing")
    if not isinstance(value, kind):
        raise ValueError(f"{field} must be {_KINDS.get(kind, kind.__name__)}, got {type(value).__name__}")
    return value


def embedded(row: Row, name: str, kind: type) -> Any:
    """JSON inside a string, or what a reader of typed files made of it already."""
    value = row.get(name)
    if not isinstance(value, kind):
        try:
            value = json.loads(need(row, name, str))
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is not JSON: {error.msg}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{name} must hold a JSON {kind.__name__}")
    return value


def refused(said: str) -> Callable[[Row], Iterable[Converted]]:
    """The converter of a format that is known and cannot be used."""

    def convert(row: Row) -> Iterable[Converted]:
        raise ValueError(f"{said}; the columns are {', '.join(sorted(row))}")

    return convert


_KINDS = {str: "a string", list: "a list", dict: "an object", int: "a whole number", bool: "true or false"}
