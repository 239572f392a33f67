"""The columns of a file: renamed as asked, and watched, so that one that nothing reads is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lodestar.errors import DataError

NOTHING: tuple[Any, ...] = (None, "", [], {})
"""Values of a column that holds nothing in a row."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: the options of ``data`` that a reader needs."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name → the file's: ``{"prompt": "instruction"}``."""
    ignore: frozenset[str] = frozenset()
    """Columns to leave out, as if they were not there."""
    strings: Literal["text", "messages"] = "text"
    """What a prompt of one string is: text as it stands, or a user's message."""
    all_turns: bool = False
    """Learn every answer of a demonstration's dialogue, not the last alone."""
    strict: bool = False
    """Refuse a file with a column that nothing reads."""


class Columns(dict[str, Any]):
    """A row that sees which of its columns are read (by ``[]`` and ``get``; ``in`` and iteration do not count)."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dictionary's, and seen."""
        self.used.add(name)
        return super().get(name, default)

    def unused(self) -> list[str]:
        """Columns that hold something and were not read."""
        return [name for name, value in self.items() if name not in self.used and value not in NOTHING]


class Unused:
    """Counts, file by file, the rows whose columns nothing read."""

    def __init__(self) -> None:
        self._rows: dict[str, Counter[str]] = {}

    def add(self, path: Path | str, row: Columns) -> None:
        """Counts what a usable row holds beyond what was read of it."""
        if names := row.unused():
            self._rows.setdefault(str(path), Counter()).update(names)

    def of(self, path: Path | str) -> dict[str, int]:
        """Column → rows of the file in which it holds something that nothing read."""
        return dict(self._rows.get(str(path), Counter()).most_common())

    def sentences(self) -> list[str]:
        """One for each file with such columns."""
        return [f"{path}: nothing reads the columns {', '.join(self.of(path))}" for path in self._rows]

    def refuse(self, path: Path | str) -> None:
        """Refuses a file with such columns.

        Raises:
            DataError: names them.
        """
        if names := self.of(path):
            raise DataError(
                path,
                f"has columns that nothing reads: {', '.join(names)}; name those to leave out in data.ignore, "
                "or say in data.columns what they are",
            )


def renamed(row: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """The row without the columns to ignore, and with our names for those that ``reading.columns`` maps.

    Raises:
        ValueError: the row lacks such a column.
    """
    if not reading.columns and not reading.ignore:
        return dict(row)
    columns = reading.columns
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise ValueError(f"lacks the column {missing[0]} of data.columns; it has {', '.join(sorted(row))}")
    gone = {*columns.values(), *columns, *reading.ignore}
    rest = {name: value for name, value in row.items() if name not in gone}
    return {ours: row[theirs] for ours, theirs in columns.items()} | rest
