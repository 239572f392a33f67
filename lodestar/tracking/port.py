"""What a tracker takes, and which there are."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lodestar.errors import LodestarError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Tracker → the module that it needs; the extra of its name installs it."""


class Tracker(Protocol):
    """One run in one tracker: ``options`` is called first. Methods raise whatever the tracker's package raises."""

    def figures(self, stage: str, step: int, time: float, values: Mapping[str, float]) -> None:
        """Figures of a step of a stage, by the names of metrics.jsonl; ``time`` is Unix time."""

    def text(self, name: str, markdown: str) -> None:
        """Something to read, such as a table of samples."""

    def options(self, values: Mapping[str, Any]) -> None:
        """The run's configuration, by dotted names."""

    def file(self, path: Path) -> None:
        """The report, for instance."""

    def close(self) -> None:
        """Everything is where readers find it when this returns."""


def opened(name: str, folder: Path, run: str, run_id: str) -> Tracker:
    """A tracker of this name.

    Args:
        folder: of its files. run: the run's name.
        run_id: the same over restarts of the run, so that it goes on in the tracker as one.

    Raises:
        LodestarError: its package is not installed.
    """
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise LodestarError(f"{PACKAGES[name]} is not installed: pip install 'lodestar-rlhf[{name}]'")
    make: Callable[[Path, str, str], Tracker] = importlib.import_module(f"lodestar.tracking.{name}_tracker").make
    folder.mkdir(parents=True, exist_ok=True)
    return make(folder, run, run_id)
