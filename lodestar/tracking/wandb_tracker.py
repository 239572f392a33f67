"""Weights & Biases, offline: ``wandb sync runs/NAME/tracking/wandb/wandb/offline-run-*`` sends it when you want it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb


class WeightsAndBiases:
    """See Tracker. Each stage has its own step axis, ``STAGE/step``: W&B's own counts calls."""

    def __init__(self, folder: Path, run: str, run_id: str) -> None:
        quiet = wandb.Settings(
            console="off", silent=True, x_disable_stats=True, x_disable_meta=True, x_save_requirements=False
        )
        self._run = wandb.init(
            project="lodestar", name=run, id=run_id, dir=str(folder), mode="offline", resume="allow", settings=quiet
        )
        self._stages: set[str] = set()

    def figures(self, stage: str, step: int, time: float, values: Mapping[str, float]) -> None:
        """One call's row."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        row = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({**row, f"{stage}/step": step, "time": time})

    def text(self, name: str, markdown: str) -> None:
        """An entry of the summary, and a panel."""
        self._run.log({name: wandb.Html(f"<pre>{_escaped(markdown)}</pre>", inject=False)})
        self._run.summary[f"{name}.md"] = markdown

    def options(self, values: Mapping[str, Any]) -> None:
        """The run's config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def file(self, path: Path) -> None:
        """An artifact of the run."""
        artifact = wandb.Artifact(f"{self._run.id}-{path.stem}", type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def make(folder: Path, run: str, run_id: str) -> WeightsAndBiases:
    """The run, gone on with where it was begun before."""
    return WeightsAndBiases(folder, run, run_id)
