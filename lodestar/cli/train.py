"""``lodestar train``: a supervised stage in this process, with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from lodestar.config import RunConfig, dump, load_config
from lodestar.data.files import DataFiles
from lodestar.errors import ConfigError
from lodestar.layout import RunFolder
from lodestar.local.jobs import run_stage
from lodestar.local.lock import locked
from lodestar.local.state import refuse_changes

_OTHERS = tuple(RunConfig.model_fields.keys() - {"seed", "data", "model"})
"""Sections that the run's data do not depend on."""


class Bars:
    """A lodestar.train.progress.Progress drawn by rich: one bar per stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", figures="", visible=False)

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        self._task = self._progress.add_task(stage, total=total or None, figures="")

    def advance(self, amount: int = 1) -> None:
        """So much more is done."""
        self._progress.advance(self._task, amount)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Figures beside the bar."""
        text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
        self._progress.update(self._task, figures=text)


def train(stage: str, path: Path, overrides: Sequence[str]) -> None:
    """Runs the stage, and the data stage before it when the run has no data yet.

    Raises:
        ResumeRefused: the run's data were made with another seed, data or model section.
    """
    config = load_config(path, overrides)
    if stage in ("pretrain", "sft") and getattr(config, stage) is None:
        raise ConfigError(stage, f"is not set in {path}; add a section {stage}: {{}}")
    folder = RunFolder(Path(config.runs_dir) / config.name)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with locked(folder.root), Progress(*columns, TextColumn("[dim]{task.fields[figures]}")) as progress:
        if folder.config.exists():
            refuse_changes(folder, config, _OTHERS)
        else:
            folder.config.write_text(dump(config), encoding="utf-8")
        complete = DataFiles.of(folder).counts.exists()  # the data stage writes it last
        for step in ([] if complete else ["data"]) + [stage]:
            run_stage(step, config, folder, Bars(progress))
    made = {"pretrain": folder.pretrained, "sft": folder.sft, "reward": folder.reward_model}[stage]
    Console(highlight=False).print(f"[green]✓[/] {escape(str(made))}")
