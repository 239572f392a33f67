"""A run's figures as rows, whatever stage wrote them: for trackers, data frames and files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestar.config import flat
from lodestar.errors import DataError
from lodestar.local.board import PROGRESS
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import Step


@dataclass(frozen=True, slots=True)
class FigureRow:
    """``FigureRow(3, 1764354062.1, {"score": 0.4, "seconds.collect": 1.5})``."""

    step: int
    """Of the stage: PPO steps, or optimizer steps of a training."""
    time: float
    """Unix time."""
    values: dict[str, float]
    """Finite numbers by the names of metrics.jsonl; what lies deeper by its dotted name."""


def figure_rows(folder: RunFolder, step: Step) -> list[FigureRow]:
    """What a stage has written: metrics.jsonl of its figures, or the figures of its progress (logs/STAGE.jsonl).

    Raises:
        DataError: metrics.jsonl is damaged, or its last line is being written.
    """
    rows = folder.rows(step, "metrics.jsonl") if "figures" in step.makes else []
    if rows:
        return [FigureRow(int(row["step"]), float(row["time"]), _numbers(row, ("step", "time"))) for row in rows]
    path = folder.root / "logs" / f"{step.name}.jsonl"
    lines = [(line, _numbers(line, PROGRESS)) for line in _lines(path)]
    began = path.stat().st_mtime - max((line["seconds"] for line, _ in lines), default=0.0) if lines else 0.0
    return [FigureRow(int(line["done"]), began + line["seconds"], values) for line, values in lines if values]


def run_figures(folder: RunFolder, stage: str | None = None) -> list[dict[str, Any]]:
    """Rows of one stage, or of all: ``{"stage", "step", "time", …figures}``.

    Raises:
        ConfigError: the run has no such stage.
        DataError: it has written no figures, or they are damaged.
    """
    steps = folder.plan.steps if stage is None else [folder.plan.step(stage)]
    found = [
        {"stage": step.name, "step": row.step, "time": row.time, **row.values}
        for step in steps
        for row in figure_rows(folder, step)
    ]
    if not found:
        raise DataError(folder.root, f"{stage or 'no stage'} has written {'no ' if stage else ''}figures yet")
    return found


def _numbers(row: Mapping[str, Any], without: tuple[str, ...]) -> dict[str, float]:
    named = flat({name: value for name, value in row.items() if name not in without})
    return {
        name: float(value)
        for name, value in named.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_bytes().split(b"\n")[:-1]:
        if text.strip():
            try:
                yield json.loads(text)
            except ValueError:  # cut by a kill
                continue
