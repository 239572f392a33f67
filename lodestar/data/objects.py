"""The objects of a data file with their line numbers: JSON Lines, a JSON array, or CSV; .gz of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lodestar.data.files import BadRows
from lodestar.errors import DataError
from lodestar.files import numbered_rows, open_text

ENDINGS = (".jsonl", ".json", ".csv")


def ending(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix


def stem(path: Path) -> str:
    """``a`` of ``a.jsonl.gz``."""
    return Path(path.name.removesuffix(".gz")).stem


def read_objects(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the line where it begins, from 1.

    Raises:
        DataError: the file is missing or unreadable, or a JSON or CSV file is broken; a bad row when strict.
    """
    if ending(path) == ".json":
        yield from _array(path, bad)
    elif ending(path) == ".csv":
        yield from _table(path)
    else:
        yield from numbered_rows(path, bad.add)


def _array(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """A file of one array; one that holds objects line by line is read as such."""
    text = _text(path)
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        yield from numbered_rows(path, bad.add)
        return
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(path, f"is not JSON: {error.msg}", line=error.lineno) from None
        if isinstance(row, dict):
            yield line, row
        else:
            bad.add(DataError(path, f"must be an object {{…}}, is {type(row).__name__}", line=line))
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise DataError(path, "is not JSON: the array does not end", line=line)


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header; cells beyond it are left out."""
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    before = 1
    try:
        for row in reader:
            yield before + 1, {name: value for name, value in row.items() if name is not None}
            before = reader.line_num
    except csv.Error as error:
        raise DataError(path, f"is not CSV: {error}", line=reader.line_num) from None


def _text(path: Path) -> str:
    with open_text(path, newline="") as file:
        return file.read()


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
