"""What the trackers' process reads of a run, and what it has told each of them already.

Consumes   the figures of stages as they are written, then samples, summary and report.
Produces   calls of trackers.
A tracker that raises is dropped with a warning; the others go on. What was told is kept in tracking/told.json, so that
a run that is resumed tells each step once; a learner that goes back to its checkpoint does not take back what it told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

from lodestar.config import flat
from lodestar.errors import DataError, LodestarError
from lodestar.files import append, json_line, read_json, write_atomically
from lodestar.recipe.figures import FigureRow, figure_rows
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import Step
from lodestar.tracking.beside import FOLDER, WARNINGS
from lodestar.tracking.port import Tracker, opened

log = logging.getLogger(__name__)
FILES = ("config.yaml", "summary.json", "report.html")
SHOWN = 16
"""Rows of samples."""
LONGEST = 200
"""Characters of a cell that are shown at most."""


class Follower:
    """``follower.look()`` now and then, ``follower.finish()`` once the run is over."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._path = folder.root / FOLDER / "told.json"
        kept = read_json(self._path) if self._path.exists() else {}
        self._run_id: str = kept.get("run_id") or f"{folder.run.name}-{secrets.token_hex(4)}"
        self._told: dict[str, dict[str, Any]] = kept.get("told", {})
        self._trackers: dict[str, Tracker] = {}
        for name in folder.run.tracking:
            self._try(name, lambda name=name: self._open(name))  # type: ignore[misc]

    def look(self) -> None:
        """Tells what is new."""
        for step in self._folder.plan.steps:
            series = self._rows(step)
            if not series:
                continue
            first = hashlib.sha256(repr((series[0].step, series[0].values)).encode()).hexdigest()[:16]
            for name, tracker in list(self._trackers.items()):
                told = self._told.setdefault(name, {}).setdefault(step.name, {})
                if told.get("first") != first:  # a stage that is made anew
                    told.update(first=first, rows=0)
                new = series[told["rows"] :]
                self._try(name, lambda t=tracker, rows=new, s=step.name: _tell(t, s, rows))  # type: ignore[misc]
                told["rows"] = max(told["rows"], len(series))
        self._keep()

    def finish(self) -> None:
        """The last figures, samples, summary and report."""
        self.look()
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda tracker=tracker: self._end(tracker))  # type: ignore[misc]
        self._keep()

    def _open(self, name: str) -> None:
        run = self._folder.run
        tracker = opened(name, self._folder.root / FOLDER / name, run.name, self._run_id)
        tracker.options(flat(run.model_dump(mode="json")))
        self._trackers[name] = tracker

    def _try(self, name: str, work: Callable[[], None]) -> None:
        """A tracker that fails is left out from now on."""
        try:
            work()
        except Exception as error:  # whatever a tracker's package raises
            log.exception("tracker %s", name)
            self._trackers.pop(name, None)
            said = str(error) if isinstance(error, LodestarError) else f"{type(error).__name__}: {error}"
            warning = f"{name}: {said.splitlines()[0] if said else ''}; the run goes on without it"
            append(self._folder.root / FOLDER / WARNINGS, json_line({"warning": warning}))

    def _rows(self, step: Step) -> list[FigureRow]:
        try:
            return figure_rows(self._folder, step)
        except DataError:  # its last line is being written
            return []

    def _end(self, tracker: Tracker) -> None:
        for step in self._folder.plan.steps:
            if "figures" in step.makes and (rows := self._folder.rows(step, "samples.jsonl")):
                tracker.text(f"{step.name}/samples", table(rows[:SHOWN]))
        for name in FILES:
            if (self._folder.root / name).exists():
                tracker.file(self._folder.root / name)
        tracker.close()

    def _keep(self) -> None:
        write_atomically(self._path, json.dumps({"run_id": self._run_id, "told": self._told}))


def _tell(tracker: Tracker, stage: str, rows: list[FigureRow]) -> None:
    for row in rows:
        tracker.figures(stage, row.step, row.time, row.values)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of some rows: their columns that are text or numbers."""
    columns = [name for name, value in rows[0].items() if isinstance(value, str | int | float)]
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows)])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return text.replace("|", "\\|").replace("\n", "<br>")
