"""What a run leaves line by line: metrics.jsonl and ledger.jsonl, cut back together when a learner resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lodestar.errors import ResumeRefused
from lodestar.layout import RunFolder
from lodestar.records import LedgerEntry


class JsonLines:
    """A file of JSON objects that is only appended to."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Opens the file and cuts it at ``offset`` bytes: 0 begins anew, a checkpoint's offset resumes.

        Raises:
            ResumeRefused: the file is shorter than the checkpoint says, or a line before that is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise ResumeRefused(f"{path} has {size} bytes, but the checkpoint was written when it had {offset}")
        if offset:
            _check_lines(path, offset)
        self._file = path.open("ab")
        self._file.truncate(offset)

    def append(self, rows: Iterable[Mapping[str, Any] | LedgerEntry]) -> None:
        """Writes one line per row."""
        for row in rows:
            self._file.write(json.dumps(asdict(row) if isinstance(row, LedgerEntry) else row).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Makes what was appended durable and returns the file's length in bytes, for the checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        self._file.close()


def _check_lines(path: Path, offset: int) -> None:
    """Whether what the checkpoint counts on is there line by line.

    Raises:
        ResumeRefused: names the first line that is not.
    """
    with path.open("rb") as file:
        lines = file.read(offset).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines):
            whole = not line  # what follows the last newline
        else:
            try:
                whole = isinstance(json.loads(line), dict)
            except ValueError:
                whole = False
        if not whole:
            raise ResumeRefused(
                f"{path}:{number} is damaged, and the checkpoint counts on it: put the line back from a copy, or start "
                "the run again under another name"
            )


class Journal:
    """``Journal(folder, checkpoint["journal"])`` goes on from the checkpoint; without offsets it begins anew."""

    def __init__(self, folder: RunFolder, offsets: Mapping[str, int] | None = None) -> None:
        """
        Raises:
            ResumeRefused: a file lost lines that the checkpoint counts on.
        """
        offsets = offsets or {}
        self._metrics = JsonLines(folder.metrics, offsets.get("metrics", 0))
        self._ledger = JsonLines(folder.ledger, offsets.get("ledger", 0))

    def record(self, row: Mapping[str, Any], settled: Iterable[LedgerEntry]) -> None:
        """One step: its line of metrics.jsonl and how its tickets ended."""
        self._ledger.append(settled)
        self._metrics.append([row])

    def sync(self) -> dict[str, int]:
        """Makes both durable; the offsets belong into the checkpoint."""
        return {"metrics": self._metrics.sync(), "ledger": self._ledger.sync()}

    def close(self) -> None:
        """Syncs and closes both."""
        self._metrics.close()
        self._ledger.close()
