"""MLflow: a SQLite file and a folder of artifacts (its older file store takes no new runs since MLflow 3.13);
``mlflow ui --backend-store-uri sqlite:///runs/NAME/tracking/mlflow/mlflow.db`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

MOST = 500
"""Characters of an option's value; MLflow refuses more than 6,000, and nobody reads so many in a table."""
BATCH = 100
"""Parameters of one call."""


class MLflow:
    """See Tracker."""

    def __init__(self, folder: Path, run: str, run_id: str) -> None:
        place = folder.resolve()
        self._client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
        experiment = self._client.get_experiment_by_name("lodestar")
        known = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment("lodestar", artifact_location=(place / "artifacts").as_uri())
        )
        tag = f"tags.`lodestar.run` = '{run_id}'"
        found = self._client.search_runs([known], filter_string=tag, max_results=1)
        made = found[0] if found else self._client.create_run(known, run_name=run, tags={"lodestar.run": run_id})
        self._id = made.info.run_id
        self._client.update_run(self._id, status="RUNNING")

    def figures(self, stage: str, step: int, time: float, values: Mapping[str, float]) -> None:
        """Metrics, in one call."""
        at = int(time * 1000)
        metrics = [Metric(f"{stage}/{name}", value, at, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def text(self, name: str, markdown: str) -> None:
        """A file of the artifacts."""
        self._client.log_text(self._id, markdown, f"{name}.md")

    def options(self, values: Mapping[str, Any]) -> None:
        """Parameters; one that was told before stays."""
        told = self._client.get_run(self._id).data.params
        new = [Param(name, str(value)[:MOST]) for name, value in values.items() if name not in told]
        for start in range(0, len(new), BATCH):
            self._client.log_batch(self._id, params=new[start : start + BATCH])

    def file(self, path: Path) -> None:
        """A file of the artifacts."""
        self._client.log_artifact(self._id, str(path))

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._id)


def make(folder: Path, run: str, run_id: str) -> MLflow:
    """The run, gone on with where it was begun before."""
    return MLflow(folder, run, run_id)
