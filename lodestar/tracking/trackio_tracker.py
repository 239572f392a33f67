"""Trackio, on this machine: ``TRACKIO_DIR=runs/NAME/tracking/trackio trackio show --project lodestar`` shows it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Trackio:
    """See Tracker. Its steps are the figures' own; files are copied beside its database."""

    def __init__(self, run: str) -> None:
        import trackio

        self._trackio = trackio
        self._name = run
        self._run: Any

    def figures(self, stage: str, step: int, time: float, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def text(self, name: str, markdown: str) -> None:
        """A row with a text in it."""
        self._run.log({name: self._trackio.Markdown(markdown)})

    def options(self, values: Mapping[str, Any]) -> None:
        """The run's config, with which it begins."""
        self._run = self._trackio.init(
            project="lodestar",
            name=self._name,
            config=dict(values),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def file(self, path: Path) -> None:
        """A copy among the project's files."""
        self._trackio.save(str(path), project="lodestar")

    def close(self) -> None:
        """Finishes the run."""
        self._trackio.finish()


def make(folder: Path, run: str, run_id: str) -> Trackio:
    """The run, gone on with where it was begun before. Where TRACKIO_DIR is set, that is the place."""
    os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
    return Trackio(run)
