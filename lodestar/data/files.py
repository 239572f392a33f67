"""The normal form of a run's data: plain JSONL files below ``runs/NAME/data``, and how they are read and written.

    demonstrations.{train,held_out}.jsonl   {"prompt", "completion", "id"}
    comparisons.{train,…}.jsonl             {"prompt", "completions": [C, …], "label" | "ranking" | …}: see schema.py
    prompts.{ppo,evaluation}.jsonl          {"id", "text"}, and "messages" and "columns" where there are any
    text.{train,held_out}.jsonl             {"text"}, written when the run pretrains
    counts.json                             rows of each, and rows left out
    bad_rows.txt                            one ``file:line: what is wrong`` per refused row
    notes.txt                               what else a person should know: columns that nothing reads, joined families

Prompts are rendered text: what the model sees, after the chat template (lodestar.data.rows says how it becomes tokens).
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from lodestar.data.columns import Unused
from lodestar.data.schema import feedback_row, parse_demonstration, parse_feedback, parse_prompt, parse_text
from lodestar.errors import DataError
from lodestar.layout import RunFolder
from lodestar.preference.pairs import comparisons
from lodestar.records import Comparison, Demonstration, Feedback, Prompt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataFiles:
    """``DataFiles.of(RunFolder(Path("runs/demo"))).ppo_prompts`` is ``runs/demo/data/prompts.ppo.jsonl``."""

    folder: Path

    @staticmethod
    def of(folder: RunFolder) -> DataFiles:
        """The data files of a run."""
        return DataFiles(folder.data)

    def demonstrations(self, split: str) -> Path:
        """``split`` is train or held_out, here and below."""
        return self.folder / f"demonstrations.{split}.jsonl"

    def comparisons(self, split: str) -> Path:
        """Feedback on completions; ``split`` may be evaluation too."""
        return self.folder / f"comparisons.{split}.jsonl"

    def text(self, split: str) -> Path:
        """Plain text to pretrain on, one document per row."""
        return self.folder / f"text.{split}.jsonl"

    @property
    def ppo_prompts(self) -> Path:
        """Prompts that PPO trains on."""
        return self.folder / "prompts.ppo.jsonl"

    @property
    def evaluation_prompts(self) -> Path:
        """Prompts that no stage has seen."""
        return self.folder / "prompts.evaluation.jsonl"

    @property
    def counts(self) -> Path:
        """What prepare counted."""
        return self.folder / "counts.json"

    @property
    def bad_rows(self) -> Path:
        """Rows that could not be used, one sentence each."""
        return self.folder / "bad_rows.txt"

    @property
    def notes(self) -> Path:
        """What else there is to know about the rows, one sentence each."""
        return self.folder / "notes.txt"


class BadRows:
    """Collects the rows that cannot be used; raises at the first one when ``strict``."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self.errors: list[DataError] = []
        self.notes: list[str] = []
        """What else a person should know, one sentence each."""
        self.unused = Unused()

    def add(self, error: DataError) -> None:
        """Counts a bad row.

        Raises:
            DataError: the row's own, when strict.
        """
        if self._strict:
            raise error
        self.errors.append(error)

    def say(self, note: str) -> None:
        """Keeps a sentence to be told, once."""
        if note not in self.notes:
            self.notes.append(note)

    def refuse_empty(self, path: Path | str, rows: Sized, before: int) -> None:
        """Refuses a file that gave no rows; ``before`` errors were there when its reading began.

        Raises:
            DataError: there are no rows; says what was wrong with the first.
        """
        if not rows:
            refused = self.errors[before:]
            raise DataError(
                path, f"has no usable row; the first was refused: {refused[0]}" if refused else "has no rows"
            )


@contextmanager
def open_text(
    path: Path, *, encoding: str | None = None, newline: str | None = None, missing: str = "no such file"
) -> Iterator[TextIO]:
    """A text file, or a .gz of one, whose troubles are told by its name; ``missing`` is said of one that is not there.

    A byte order mark is left out, and tells UTF-16 (as Windows programs write it) from UTF-8.

    Raises:
        DataError: the file is missing, unreadable, no UTF-8, or ends inside a compressed block.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as raw:
            begin = raw.read(2)
        found = encoding or ("utf-16" if begin in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        with opener(path, "rt", encoding=found, errors="strict", newline=newline) as file:
            yield cast(TextIO, file)
    except FileNotFoundError:
        raise DataError(path, missing) from None
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not {error.encoding.upper()} text: {error.reason} at byte {error.start}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read: {error}") from error


def read_jsonl(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl or .jsonl.gz file with their line numbers, from 1; blank lines are skipped.

    A line ends at a line feed alone.

    Raises:
        DataError: the file is missing, unreadable, or ends inside a compressed block; a bad row when strict.
    """
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                bad.add(DataError(path, f"is not JSON: {error.msg} at column {error.colno}", line=number))
                continue
            except RecursionError:
                bad.add(DataError(path, "is not JSON: it is nested too deep", line=number))
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                bad.add(DataError(path, f"must be an object {{…}}, is {type(row).__name__}", line=number))


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Demonstrations in normal form.

    Raises:
        DataError: missing or empty file, or a bad row (file:line).
    """
    return [example.record for example in _read(path, parse_demonstration)]


def read_comparisons(path: Path) -> list[Comparison]:
    """The comparisons that a file of feedback holds; raises as read_demonstrations."""
    return comparisons(read_feedback(path))


def read_feedback(path: Path) -> list[Feedback]:
    """Feedback in normal form; raises as read_demonstrations."""
    return [example.record for example in _read(path, parse_feedback)]


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts in normal form, token_ids empty (lodestar.data.rows.encode_prompts fills them); raises as above."""
    return _read(path, parse_prompt)


def read_text(path: Path) -> list[str]:
    """Documents to pretrain on; raises as above."""
    return _read(path, parse_text)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any] | Demonstration | Feedback]) -> None:
    """Writes one JSON object per line; the file appears whole or not at all."""
    lines = (json.dumps(_as_row(row), ensure_ascii=False) for row in rows)
    write_text(path, "".join(line + "\n" for line in lines))


def _as_row(row: Mapping[str, Any] | Demonstration | Feedback) -> Mapping[str, Any]:
    if isinstance(row, Feedback):
        return feedback_row(row)
    return asdict(row) if isinstance(row, Demonstration) else row


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    rows = []
    for number, row in read_jsonl(path, BadRows(strict=True)):
        try:
            rows.append(parse(row))
        except ValueError as error:
            raise DataError(path, str(error), line=number) from error
    if not rows:
        raise DataError(path, "has no rows")
    return rows
