"""Reads files of feedback in any known form: the schema's own (schema.py) or a published data set's (sources.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lodestar.data.files import BadRows
from lodestar.data.objects import read_objects, stem
from lodestar.data.schema import Chat, Example, form_of, parse_feedback
from lodestar.data.sources import Source, gather, recognise
from lodestar.data.verdicts import Row
from lodestar.errors import DataError
from lodestar.records import Feedback


def read_feedback_file(path: Path, chat: Chat | None, bad: BadRows) -> list[Example[Feedback]]:
    """Every usable row of the file, in order; its subset is the file's name unless the row has one of its own.

    The first row tells the file's form; rows of another one are bad rows.

    Raises:
        DataError: the file cannot be read or has no usable row; a bad row when strict.
    """
    found, before = [], len(bad.errors)
    for line, row in _rows(path, bad):
        try:
            found.append(parse_feedback({"id": f"{stem(path)}:{line}", "subset": stem(path), **_filled(row)}, chat))
        except ValueError as error:
            bad.add(DataError(path, str(error), line=line))
    bad.refuse_empty(path, found, before)
    return found


def _rows(path: Path, bad: BadRows) -> Iterator[tuple[int, Row]]:
    """The file's rows in the schema's form."""
    source: Source | None = None
    gathered = []
    form = ""
    for line, row in read_objects(path, bad):
        known = recognise(row)
        source = source or known
        try:
            if known is not source:
                raise ValueError(f"is a row of {known.name}, the file began with {source.name}: split it by schema")
            for converted in source.convert(row):
                if isinstance(converted, ValueError):
                    bad.add(DataError(path, str(converted), line=line))
                    continue
                kind = form_of(converted)
                form = form or kind
                if kind != form:
                    raise ValueError(f"is a row with {kind}, the file began with {form}: split it by schema")
                if source.gathered:
                    parse_feedback(converted, _Blind())  # a bad row must not spoil those it is gathered with
                    gathered.append((line, converted))
                else:
                    yield line, converted
        except ValueError as error:
            bad.add(DataError(path, str(error), line=line))
    yield from gather(gathered)


def _filled(row: Row) -> Row:
    """Without empty names, so that the file's own take their place."""
    return {name: value for name, value in row.items() if value not in (None, "") or name not in ("id", "subset")}


class _Blind:
    """Renders nothing: to check a row alone."""

    def prompt(self, messages: object) -> str:
        return "prompt"

    def completion(self, messages: object, reply: str) -> str:
        return reply
