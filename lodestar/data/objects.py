"""The objects of a data file with their line numbers: JSON Lines, JSON, CSV, Parquet and Arrow; .gz of the text ones.

A line of JSON Lines ends at a line feed and nowhere else: U+2028, U+0085 and their like are characters of a text. A
byte order mark is no part of a name.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lodestar.data.files import BadRows
from lodestar.data.tables import read_table
from lodestar.errors import DataError
from lodestar.files import numbered_rows, open_text

TEXTS = (".jsonl", ".json", ".csv", ".tsv", ".ndjson")
TABLES = (".parquet", ".arrow", ".feather")
ENDINGS = (*TEXTS, *TABLES)


def ending(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def stem(path: Path) -> str:
    """``a`` of ``a.jsonl.gz``."""
    return Path(path.name.removesuffix(".gz")).stem


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that can be read, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and ending(path) in ENDINGS)


def read_objects(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the line where it begins, or its row's number, from 1.

    Raises:
        DataError: the file is missing or unreadable, or a JSON or CSV file is broken; a bad row when strict.
    """
    kind = ending(path)
    if kind == ".json":
        yield from _json(path, bad)
    elif kind in (".csv", ".tsv"):
        yield from _table(path, bad)
    elif kind in TABLES:
        yield from read_table(path)
    else:
        yield from numbered_rows(path, bad.add)


def _json(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """A file of one array, of an object that holds one, or of objects one after another, over lines or line by line."""
    text = _text(path)
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        if (inside := _array_of(text, position)) is None:
            yield from _objects(path, text, bad)
            return
        position = inside
    line, counted = 1 + text.count("\n", 0, position), position
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        row, position = _value(path, text, position)
        yield from _checked(path, row, line, bad)
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise DataError(path, "is not JSON: the array does not end", line=line)


def _array_of(text: str, position: int) -> int | None:
    """Where the one array of objects begins in a file that is a single object, ``{"data": [{…}]}``."""
    decoder = json.JSONDecoder()
    try:
        whole, end = decoder.raw_decode(text, position)
    except (json.JSONDecodeError, RecursionError):
        return None
    if _skip(text, end) < len(text) or not isinstance(whole, dict):
        return None
    arrays = [name for name, value in whole.items() if _holds_rows(value)]
    if len(arrays) != 1 or any(isinstance(value, dict | list) for name, value in whole.items() if name not in arrays):
        return None
    start = text.index(json.dumps(arrays[0], ensure_ascii=text.isascii()), position) + len(json.dumps(arrays[0]))
    return text.index("[", start)


def _holds_rows(value: Any) -> bool:
    rows = isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    return rows and not all("role" in row or "from" in row for row in value)  # a row's own messages are no rows


def _objects(path: Path, text: str, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects one after another; where one breaks, the next is looked for on the line after it."""
    position, line, counted = _skip(text, 0), 1, 0
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = json.JSONDecoder().raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            bad.add(DataError(path, f"is not JSON: {_said(error)}", line=line))
            after = text.find("\n", position)
            position = len(text) if after < 0 else after
        else:
            yield from _checked(path, row, line, bad)
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)


def _value(path: Path, text: str, position: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise DataError(path, f"is not JSON: {error.msg}", line=error.lineno) from None
    except RecursionError:
        raise DataError(path, "is not JSON: it is nested too deep", line=1 + text.count("\n", 0, position)) from None


def _said(error: json.JSONDecodeError | RecursionError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deep"


def _checked(path: Path, row: Any, line: int, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(row, dict):
        yield line, row
    else:
        bad.add(DataError(path, f"must be an object {{…}}, is {type(row).__name__}", line=line))


def _table(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with a header. Empty cells are absent; a cell that holds JSON objects is read as them."""
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
    before = 1
    try:
        names = next(reader, [])
        before = max(reader.line_num, 1)
        if len(set(names)) < len(names) or any(not name.strip() for name in names):
            raise DataError(path, f"the header must name every column once; it is {', '.join(map(repr, names))}", 1)
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not cells:
                continue
            if len(cells) != len(names):
                bad.add(DataError(path, f"has {len(cells)} cells, the header has {len(names)} columns", line=line))
                continue
            yield line, {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
    except csv.Error as error:
        raise DataError(path, f"is not CSV: {error}", line=reader.line_num) from None


def _delimiter(path: Path, text: str) -> str:
    """Tabs in .tsv; else the comma, or what separates a header that has none (Excel's semicolon in many countries)."""
    if ending(path) == ".tsv":
        return "\t"
    header = text[: text.find("\n")] if "\n" in text else text
    return next((mark for mark in ",;\t" if mark in header), ",")


STRUCTURED = frozenset(
    {"messages", "completions", "ranking", "choices", "ratings", "scales", "compared_by", "gold", "flags", "columns"}
)
"""Columns of the schema that no string is right in."""


def _cell(name: str, value: str) -> Any:
    """A cell's text, or the JSON in it: where the column can hold nothing else, and where it is a list of messages."""
    if value[0] not in "[{":
        return value
    try:
        found = json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return value
    return found if name in STRUCTURED or _holds_messages(found) else value


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _text(path: Path) -> str:
    with open_text(path, newline="") as file:
        return file.read()


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
