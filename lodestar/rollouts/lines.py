"""Files of JSON lines that are only appended to, and cut back to where a checkpoint was taken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lodestar import strict_json
from lodestar.errors import ResumeRefused
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
        """Writes one line per row; numbers that are none are named in it (strict_json)."""
        for row in rows:
            self._file.write(strict_json.dumps(asdict(row) if isinstance(row, LedgerEntry) else row).encode() + b"\n")
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
