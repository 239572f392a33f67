"""``lodestar submit | status | logs | cancel``: runs on Kubernetes, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lodestar.config import load_config
from lodestar.errors import LodestarError
from lodestar.kubernetes import Cluster, FleetStatus, cancel, logs, render, status, submit, watch

_OUT = Console()


def submit_run(
    config: Path,
    overrides: Sequence[str],
    *,
    overlay: Path,
    namespace: str,
    context: str | None,
    image: str | None,
    dry_run: bool,
    follow: bool,
) -> None:
    """Renders the run's fleet and creates it; with ``dry_run`` prints the objects instead."""
    run = load_config(config, overrides)
    fleet = render(run, overlay, namespace=namespace, image=image)
    if dry_run:
        print(fleet.to_yaml(), end="")
        return
    cluster = Cluster.connect(namespace, context)
    submit(cluster, fleet)
    _OUT.print(f"run {run.name} is submitted to namespace {namespace}")
    if follow:
        _follow(cluster, run.name)


def show_status(run: str, *, namespace: str, context: str | None, follow: bool) -> None:
    """The fleet as a table, once or at every change until the run ends."""
    cluster = Cluster.connect(namespace, context)
    if follow:
        _follow(cluster, run)
    else:
        _OUT.print(_table(status(cluster, run)))


def show_logs(run: str, role: str, *, namespace: str, context: str | None, follow: bool) -> None:
    """A role's log lines."""
    for line in logs(Cluster.connect(namespace, context), run, role, follow=follow):
        print(line)


def cancel_run(run: str, *, namespace: str, context: str | None) -> None:
    """Deletes what a submission made."""
    cancel(Cluster.connect(namespace, context), run)
    _OUT.print(f"run {run} is cancelled; its volume, with checkpoints and results, stays")


def _follow(cluster: Cluster, run: str) -> None:
    for fleet in watch(cluster, run):
        _OUT.print(_table(fleet))
        if fleet.failed:
            raise LodestarError(f"run {run} failed: {fleet.failed}")


def _table(fleet: FleetStatus) -> Table:
    state = "finished" if fleet.finished else f"failed: {fleet.failed}" if fleet.failed else "running"
    table = Table("role", "ready", "what is wrong", title=f"{fleet.run}: {state}", title_justify="left")
    for workload in fleet.workloads:
        table.add_row(workload.role, f"{workload.ready}/{workload.wanted}", "\n".join(workload.problems))
    return table
