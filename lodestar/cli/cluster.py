"""``lodestar submit | status | logs | cancel``: runs on Kubernetes, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from rich.console import Console
from rich.table import Table

from lodestar.config import load_config
from lodestar.errors import LodestarError
from lodestar.kubernetes import FleetStatus, Namespace, cancel, live, logs, render, status, submit

_OUT = Console()


def conduct_here(
    config: Path, overrides: Sequence[str], *, suffix: str, shared: Mapping[str, str], listening: Mapping[str, Any]
) -> None:
    """Conducts a run from inside its cluster."""
    import logging

    from lodestar.config.serve import Listening
    from lodestar.crew.cluster import Site
    from lodestar.crew.there import run_there
    from lodestar.local.signals import Interrupted
    from lodestar.recipe.plan import plan

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    run = load_config(config, overrides)
    site = Site(Listening(**listening), suffix, shared)
    try:
        run_there(run, plan(run), Namespace.here(), site)
    except Interrupted as signal:
        raise typer.Exit(signal.exit_code) from None


def submit_run(
    config: Path,
    overrides: Sequence[str],
    *,
    overlay: Path,
    namespace: str,
    context: str | None,
    image: str | None,
    shared: Mapping[str, str],
    dry_run: bool,
    follow: bool,
    plain: bool,
    tls: Path | None,
) -> None:
    """Renders the run's fleet and creates it; with ``dry_run`` prints the objects instead."""
    run = load_config(config, overrides)
    fleet = render(run, overlay, namespace=namespace, image=image, shared=shared)
    if dry_run:
        print(fleet.to_yaml(), end="")
        return
    cluster = Namespace.connect(namespace, context)
    submit(cluster, fleet)
    _OUT.print(f"run {run.name} is submitted to namespace {namespace}")
    if follow:
        _follow(cluster, run.name, plain, tls)


def show_status(run: str, *, namespace: str, context: str | None, follow: bool, plain: bool, tls: Path | None) -> None:
    """The fleet as a table, or the live view until the run ends."""
    cluster = Namespace.connect(namespace, context)
    if follow:
        _follow(cluster, run, plain, tls)
    else:
        _OUT.print(_table(status(cluster, run)))


def show_logs(run: str, role: str, *, namespace: str, context: str | None, follow: bool) -> None:
    """A role's log lines."""
    for line in logs(Namespace.connect(namespace, context), run, role, follow=follow):
        print(line)


def cancel_run(run: str, *, namespace: str, context: str | None) -> None:
    """Deletes what a submission made."""
    cancel(Namespace.connect(namespace, context), run)
    _OUT.print(f"run {run} is cancelled; its volume, with checkpoints and results, stays")


def _follow(cluster: Namespace, run: str, plain: bool, tls: Path | None) -> None:
    ended = live.follow(cluster, run, plain=plain or not sys.stdout.isatty(), tls=tls)
    if ended.failed:
        raise LodestarError(f"run {run} failed: {ended.failed}; lodestar logs {run} says why")
    _OUT.print(f"run {run} is finished; its servers go on serving until lodestar cancel {run}")


def _table(fleet: FleetStatus) -> Table:
    state = "finished" if fleet.finished else f"failed: {fleet.failed}" if fleet.failed else "running"
    table = Table("role", "ready", "what is wrong", title=f"{fleet.run}: {state}", title_justify="left")
    for workload in fleet.workloads:
        table.add_row(workload.role, f"{workload.ready}/{workload.wanted}", "\n".join(workload.problems))
    return table
