"""The normal form of a run's data: plain JSONL files, by artifact, and how they are read and written.

    demonstrations/{train,held_out}.jsonl        {"prompt", "completion", "id"}
    feedback/{train,held_out,evaluation}.jsonl   {"prompt", "completions": [C, …], "label" | …}: see schema.py
    prompts/{ppo,evaluation}.jsonl               {"id", "text"}, and "messages" and "columns" where there are any
    text/{train,held_out}.jsonl                  {"text"}
    figures/counts.json                          rows of each, and rows left out
    figures/bad_rows.txt                         one ``file:line: what is wrong`` per refused row
    figures/notes.txt                            what else there is to know: columns that nothing reads, joined families

Prompts are rendered text: what the model sees, after the chat template (lodestar.data.rows says how it becomes tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from lodestar import files
from lodestar.data.columns import Unused
from lodestar.data.schema import feedback_row, parse_demonstration, parse_feedback, parse_prompt, parse_text
from lodestar.errors import DataError
from lodestar.preference.pairs import comparisons
from lodestar.records import Comparison, Demonstration, Feedback, Prompt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataFiles:
    """``DataFiles(Path("runs/demo/data")).prompts("ppo")`` is ``runs/demo/data/prompts/ppo.jsonl``."""

    folder: Path

    def demonstrations(self, split: str) -> Path:
        """``split`` is train or held_out, here and below."""
        return self.folder / "demonstrations" / f"{split}.jsonl"

    def feedback(self, split: str) -> Path:
        """Feedback on completions; ``split`` may be evaluation too."""
        return self.folder / "feedback" / f"{split}.jsonl"

    def text(self, split: str) -> Path:
        """Plain text to pretrain on, one document per row."""
        return self.folder / "text" / f"{split}.jsonl"

    def prompts(self, use: str) -> Path:
        """``use`` is ppo (prompts to sample in training) or evaluation (which no stage has seen)."""
        return self.folder / "prompts" / f"{use}.jsonl"

    @property
    def tokenizer(self) -> Path:
        """The run's tokenizer: the start model's with its chat template, or one made from nothing."""
        return self.folder / "tokenizer"

    @property
    def counts(self) -> Path:
        """What prepare counted."""
        return self.folder / "figures" / "counts.json"

    @property
    def bad_rows(self) -> Path:
        """Rows that could not be used, one sentence each."""
        return self.folder / "figures" / "bad_rows.txt"

    @property
    def notes(self) -> Path:
        """What else there is to know about the rows, one sentence each."""
        return self.folder / "figures" / "notes.txt"


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
    """Writes rows of the normal form; the file appears whole or not at all."""
    files.write_jsonl(path, map(_as_row, rows))


def write_feedback(path: Path, rows: Iterable[Feedback]) -> None:
    """Writes feedback in normal form; the file appears whole or not at all."""
    write_jsonl(path, rows)


def _as_row(row: Mapping[str, Any] | Demonstration | Feedback) -> Mapping[str, Any]:
    if isinstance(row, Feedback):
        return feedback_row(row)
    return asdict(row) if isinstance(row, Demonstration) else row


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    rows = []
    for number, row in files.numbered_rows(path):
        try:
            rows.append(parse(row))
        except ValueError as error:
            raise DataError(path, str(error), line=number) from error
    if not rows:
        raise DataError(path, "has no rows")
    return rows
