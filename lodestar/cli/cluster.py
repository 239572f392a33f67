"""``lodestar conduct | submit | status | logs | cancel``: runs on Kubernetes, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from lodestar.client import RunClient
from lodestar.config import load_config
from lodestar.crew.here import board_of
from lodestar.errors import LodestarError, Unavailable
from lodestar.kubernetes import FleetStatus, Namespace, cancel, default_overlay, live, logs, render, status, submit
from lodestar.local.page import Page
from lodestar.local.view import view_for
from lodestar.recipe import named
from lodestar.recipe.folder import RunFolder
from lodestar.rpc.state import ServiceState

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
    overlay: Path | None,
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
    run = named.run_config(config, [*overrides])
    fleet = render(run, overlay or default_overlay(), namespace=namespace, image=image, shared=shared)
    if dry_run:
        print(fleet.to_yaml(), end="")
        return
    cluster = Namespace.connect(namespace, context)
    submit(cluster, fleet)
    _OUT.print(f"run {run.name} is submitted to namespace {namespace}")
    if follow:
        _follow(cluster, run.name, plain, tls)


def show_status(run: str, *, namespace: str, context: str | None, follow: bool, plain: bool, tls: Path | None) -> None:
    """Stages and fleet, or the live view until the run ends: of a folder on this machine, or of a run on a cluster."""
    if "/" in run or named.is_run(Path(run)) or Path(run).is_file():  # else it is a name on a cluster
        _show_here(named.run_folder(Path(run)), follow, plain)
        return
    cluster = Namespace.connect(namespace, context)
    if follow:
        _follow(cluster, run, plain, tls)
        return
    fleet = status(cluster, run)
    if fleet.conductor:
        try:
            _OUT.print(Page(live.told(cluster, fleet.conductor, tls)))
        except LodestarError as error:
            _OUT.print(f"the conductor cannot be asked: {error}{live.hint(error, tls)}", markup=False)
    _OUT.print(_table(fleet))


def _show_here(folder: RunFolder, follow: bool, plain: bool) -> None:
    """A run of this machine: what its conductor says, else what is done of it."""
    state = folder.root / "services" / "run-0.json"
    if state.exists():
        address = ServiceState.read(state).address
        board = board_of(folder.run, folder.plan)
        try:
            with RunClient(address) as conductor:
                if not follow:
                    _OUT.print(Page(conductor.status()))
                    return
                with view_for(plain)(board):
                    for _ in conductor.watch(board):
                        pass
            return
        except Unavailable:  # it has ended, by itself or not
            pass
    board = board_of(folder.run, folder.plan)
    for step, seal in folder.seals():
        board.kept(step.name, seal["seconds"])
    _OUT.print(Page(board))
    left = [step.name for step in folder.plan.steps if not folder.store.seal_of(step.name)]
    _OUT.print(
        f"nothing conducts it; {', '.join(left)} left: lodestar run {folder.root} --resume"
        if left
        else "it is finished"
    )


def show_logs(run: str, what: str, *, namespace: str, context: str | None, follow: bool) -> None:
    """Log lines of a stage, of a fleet, or of what runs now."""
    for line in logs(Namespace.connect(namespace, context), run, what, follow=follow):
        print(line)


def cancel_run(run: str, *, namespace: str, context: str | None) -> None:
    """Deletes what a submission made."""
    cancel(Namespace.connect(namespace, context), run)
    _OUT.print(f"run {run} is cancelled; its volume, with checkpoints and results, stays")


def _follow(cluster: Namespace, run: str, plain: bool, tls: Path | None) -> None:
    ended = live.follow(cluster, run, plain=plain or not sys.stdout.isatty(), tls=tls)
    if ended.failed:
        raise LodestarError(f"run {run} failed: {ended.failed}; lodestar logs {run} conductor says more")
    _OUT.print(f"run {run} is finished; lodestar cancel {run} removes what is left of its fleet")


def _table(fleet: FleetStatus) -> Table:
    state = "finished" if fleet.finished else f"failed: {fleet.failed}" if fleet.failed else "running"
    stages = ", ".join(f"{stage.name} {stage.state}" for stage in fleet.stages) or "none has begun"
    table = Table("", "ready", "what is wrong", title=f"{fleet.run}: {state}", title_justify="left", caption=stages)
    for workload in fleet.workloads:
        table.add_row(workload.role, f"{workload.ready}/{workload.wanted}", "\n".join(workload.problems))
    return table
