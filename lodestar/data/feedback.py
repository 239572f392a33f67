"""Reads files in any known form: the schema's own (schema.py) or a published one (lodestar.data.formats)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lodestar.data.columns import NOTHING, Columns, Reading, renamed
from lodestar.data.corpus import preferred
from lodestar.data.files import BadRows
from lodestar.data.formats import PLAIN, Format, gather_ratings, nearest, recognise
from lodestar.data.formats.base import SCHEMA, Numbered
from lodestar.data.objects import read_objects, stem
from lodestar.data.schema import (
    Chat,
    Example,
    every_turn,
    form_of,
    parse_demonstration,
    parse_feedback,
    parse_prompt_row,
)
from lodestar.data.verdicts import Row
from lodestar.errors import DataError
from lodestar.records import ChatMessage, Demonstration, Feedback


@dataclass(slots=True)
class Found:
    """What a file holds, in its order."""

    format: Format
    feedback: list[Example[Feedback]] = field(default_factory=list)
    demonstrations: list[Example[Demonstration]] = field(default_factory=list)
    prompts: list[Example[str]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Usable rows."""
        return len(self.feedback) + len(self.demonstrations) + len(self.prompts)


def read_file(path: Path, chat: Chat | None, bad: BadRows, reading: Reading | None = None) -> Found:
    """Every usable row of the file; its subset is the file's name unless the row has one of its own.

    The first row tells the file's format and kind; rows of another one are bad rows. Columns that nothing reads are
    counted in ``bad.unused``.

    Raises:
        DataError: the file cannot be read, has no usable row or, with ``reading.strict``, a column that nothing reads;
            a bad row when strict.
    """
    return read_rows(path, read_objects(path, bad), chat, bad, reading)


def read_rows(
    path: Path | str,
    rows: Iterator[Numbered],
    chat: Chat | None,
    bad: BadRows,
    reading: Reading | None = None,
    name: str | None = None,
) -> Found:
    """As read_file, of rows that came with their line or number; ``name`` is the subset of rows without one."""
    reading, before = reading or Reading(), len(bad.errors)
    found = Found(PLAIN)
    subset = name or stem(Path(path))
    watched: dict[int, Columns] = {}
    for line, row in _converted(path, rows, bad, reading, found, watched):
        try:
            _parse(found, row, chat, {"id": f"{subset}:{line}", "subset": subset}, reading)
        except ValueError as error:
            bad.add(DataError(path, _explained(str(error), row, found.format), line=line))
            continue
        if line in watched:
            bad.unused.add(path, watched.pop(line))
    if found.format.gather or found.format.rated_singly:
        for part in watched.values():
            bad.unused.add(path, part)
    bad.refuse_empty(path, range(found.rows), before)
    if reading.strict:
        bad.unused.refuse(path)
    return found


def read_feedback_file(
    path: Path, chat: Chat | None, bad: BadRows, reading: Reading | None = None
) -> list[Example[Feedback]]:
    """The feedback of a file.

    Raises:
        DataError: as read_file; also when it holds demonstrations or prompts.
    """
    found = read_file(path, chat, bad, reading)
    if not found.feedback:
        kind, key = ("demonstrations", "demonstrations") if found.demonstrations else ("prompts", "prompts")
        raise DataError(path, f"holds {kind} ({found.format.name}) and no feedback: name it in data.{key}")
    return found.feedback


def read_demonstration_file(
    path: Path, chat: Chat, bad: BadRows, reading: Reading | None = None
) -> list[Example[Demonstration]]:
    """The demonstrations of a file; of feedback, what people liked best.

    Raises:
        DataError: as read_file; also when it holds prompts alone, or nothing that was liked.
    """
    found = read_file(path, chat, bad, reading)
    if not found.feedback:
        if not found.demonstrations:
            raise DataError(path, f"holds prompts ({found.format.name}) and no reply: name it in data.prompts")
        return found.demonstrations
    shown = preferred(found.feedback)
    if not shown:
        raise DataError(path, f"holds feedback ({found.format.name}) in which no reply was liked best")
    if len(shown) < len(found.feedback):
        left = len(found.feedback) - len(shown)
        bad.say(f"{path}: {left} of {len(found.feedback)} rows hold no reply that was liked best: nothing to imitate")
    return shown


def read_prompt_file(path: Path, chat: Chat, bad: BadRows, reading: Reading | None = None) -> list[Example[str]]:
    """The prompts of a file of any kind, each with the columns of its row.

    Raises:
        DataError: as read_file.
    """
    found = read_file(path, chat, bad, reading)
    answered: Sequence[Example[Feedback] | Example[Demonstration]] = (*found.feedback, *found.demonstrations)
    prompts = [Example(row.family, row.record.prompt, row.messages, row.columns) for row in answered]
    return [*found.prompts, *prompts]


def _converted(
    path: Path | str,
    rows: Iterator[Numbered],
    bad: BadRows,
    reading: Reading,
    found: Found,
    watched: dict[int, Columns],
) -> Iterator[Numbered]:
    """The rows in the schema's form."""
    known = _known(path, rows, bad, reading, found, watched)
    first = next(known, None)
    if first is None:
        return
    numbered = _chained(first, known)
    if found.format.gather is not None:
        numbered = found.format.gather(numbered)
    singles, form = [], ""
    for line, row in numbered:
        try:
            for converted in list(found.format.convert(row)):  # whole, so that all that it reads is seen
                if isinstance(converted, ValueError):
                    bad.add(DataError(path, str(converted), line=line))
                    continue
                kind = form_of(converted)
                form = form or kind
                if kind != form:
                    raise ValueError(f"is a row with {kind}, the file began with {form}: split it by schema")
                if found.format.rated_singly:
                    parse_feedback(converted, _Blind())  # a bad row must not spoil those it is gathered with
                    singles.append((line, converted))
                else:
                    yield line, converted
        except ValueError as error:
            bad.add(DataError(path, _explained(str(error), row, found.format), line=line))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            bad.add(DataError(path, f"is not as {found.format.name} is documented: {said}", line=line))
    yield from gather_ratings(singles)


def _known(
    path: Path | str,
    rows: Iterator[Numbered],
    bad: BadRows,
    reading: Reading,
    found: Found,
    watched: dict[int, Columns],
) -> Iterator[Numbered]:
    """Rows of the format that the first row is of, renamed and watched."""
    began = False
    for line, row in rows:
        try:
            ours = renamed(row, reading)
            known = recognise(ours)
            if not began:
                found.format, began = known, True
            if known is not found.format:
                raise ValueError(
                    f"is a row of {known.name}, the file began with {found.format.name}: split it by schema"
                )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            bad.add(DataError(path, str(error), line=line))
            continue
        watched[line] = Columns(ours)
        yield line, watched[line]


def _chained(first: Numbered, rest: Iterator[Numbered]) -> Iterator[Numbered]:
    yield first
    yield from rest


def _parse(found: Found, row: Row, chat: Chat | None, defaults: Row, reading: Reading) -> None:
    form = form_of(row)
    if form == "prompt":
        example = parse_prompt_row(row, chat, defaults, reading.strings)
        found.prompts.append(_with_columns(example, row))
    elif form == "demonstration":
        for turn in every_turn(row) if reading.all_turns else [row]:
            shown = parse_demonstration(turn, chat, defaults, reading.strings)
            found.demonstrations.append(_with_columns(shown, row))
    else:
        found.feedback.append(_with_columns(parse_feedback(row, chat, defaults, reading.strings), row))


def _with_columns(example: Example[Any], row: Row) -> Example[Any]:
    """The example with the columns that functions as rewards may read: those that say nothing of text or verdict."""
    own = row.get("columns")
    if not isinstance(own, dict):
        own = {name: value for name, value in row.items() if name not in SCHEMA and value not in NOTHING}
        if not isinstance(example.record, Feedback | Demonstration):
            own = {name: row[name] for name in own}  # they are what a file of prompts has columns for
    return Example(example.family, example.record, example.messages, own)


def _explained(said: str, row: Row, known: Format) -> str:
    """The message with what may help where no format knows the row."""
    if known is not PLAIN or not said.startswith("needs "):
        return said
    alike = nearest(row)
    shown = ", ".join(f"{one.name} ({', '.join(sorted(one.keys))})" for one in alike)
    near = f"; the nearest known formats are {shown}" if alike else ""
    return f"{said}{near}; say in data.columns which column is which, such as {{prompt: question, chosen: best}}"


class _Blind:
    """Renders nothing: to check a row alone."""

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        return "prompt"

    def reply(self, messages: Sequence[ChatMessage], reply: str) -> tuple[str, str]:
        return "prompt", reply
