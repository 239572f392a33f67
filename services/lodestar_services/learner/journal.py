"""What a learner leaves line by line: metrics.jsonl and ledger.jsonl, cut back together when it resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lodestar.records import LedgerEntry
from lodestar.rollouts.lines import JsonLines


class Journal:
    """``Journal(figures, checkpoint["journal"])`` goes on from the checkpoint; without offsets it begins anew."""

    def __init__(self, figures: Path, offsets: Mapping[str, int] | None = None) -> None:
        """
        Raises:
            ResumeRefused: a file lost lines that the checkpoint counts on.
        """
        offsets = offsets or {}
        self._metrics = JsonLines(figures / "metrics.jsonl", offsets.get("metrics", 0))
        self._ledger = JsonLines(figures / "ledger.jsonl", offsets.get("ledger", 0))

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
