"""What a stage that samples keeps: rows and ledger, cut back together to the last whole batch after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lodestar.files import read_json, read_jsonl, write_atomically
from lodestar.records import LedgerEntry
from lodestar.rollouts.lines import JsonLines


class Record:
    """``Record(state, samples, figures).keep(rows, entries)`` after every batch."""

    def __init__(self, state: Path, samples: Path, figures: Path) -> None:
        """Goes on from ``state``, which says how many batches are whole, or begins anew.

        Raises:
            ResumeRefused: a file lost lines that ``state`` counts on.
        """
        self._state = state
        before = read_json(state) if state.exists() else {"steps": 0, "samples": 0, "ledger": 0}
        self.steps = int(before["steps"])
        """Whole batches."""
        self._file = samples / "samples.jsonl"
        self._samples = JsonLines(self._file, before["samples"])
        self._ledger = JsonLines(figures / "ledger.jsonl", before["ledger"])

    def keep(self, rows: Iterable[Mapping[str, Any]], settled: Iterable[LedgerEntry]) -> None:
        """A batch is whole; durable once this returns."""
        self._samples.append(rows)
        self._ledger.append(settled)
        self.steps += 1
        now = {"steps": self.steps, "samples": self._samples.sync(), "ledger": self._ledger.sync()}
        write_atomically(self._state, json.dumps(now))

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return read_jsonl(self._file)

    def close(self) -> None:
        """Syncs and closes both files."""
        self._samples.close()
        self._ledger.close()
