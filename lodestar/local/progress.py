"""A stage's progress as a file of JSON lines: a training process writes it, the launcher and the report read it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lodestar import strict_json

WRITE_SECONDS = 0.25
"""Between two lines that only say how far the stage is."""


class ProgressFile:
    """A lodestar.train.progress.Progress that appends ``{"stage", "seconds", "done", "total", …figures}`` lines."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._file.write("\n")  # ends what a killed process may have begun
        self._stage, self._done, self._total = "", 0, 0
        self._began = self._written = time.monotonic()

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        self._stage, self._done, self._total = stage, 0, total
        self._write({})

    def advance(self, amount: int = 1) -> None:
        """So much more is done."""
        self._done += amount
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write({})

    def metrics(self, values: Mapping[str, float]) -> None:
        """Figures of the stage, with where they were taken."""
        self._write({name: float(value) for name, value in values.items()})

    def say(self, text: str) -> None:
        """A sentence, as ``{…, "said"}``."""
        self._write({"said": text})

    def warn(self, text: str) -> None:
        """A warning, as ``{…, "warned"}``."""
        self._write({"warned": text})

    def _write(self, values: Mapping[str, float | str]) -> None:
        self._written = time.monotonic()
        line = {
            "stage": self._stage,
            "seconds": round(self._written - self._began, 3),
            "done": self._done,
            "total": self._total,
            **values,
        }
        self._file.write(strict_json.dumps(line) + "\n")


class ProgressReader:
    """Follows a progress file while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def forget(self) -> None:
        """Deletes what an earlier process left."""
        self._path.unlink(missing_ok=True)
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Lines completed since the last call; a process that is started again goes on after those before it."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:  # a learner that goes on cuts its figures back to the checkpoint's
                self._offset = 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with contextlib.suppress(ValueError):  # cut by a kill: progress that nobody needs any more
                    yield json.loads(line)
