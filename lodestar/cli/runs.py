"""``lodestar demo``, ``run``, ``eval`` and ``report``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from lodestar.config import RunConfig, load_config
from lodestar.errors import FailedPrecondition
from lodestar.layout import RunFolder

DEMO_BUDGETS = {"data": 10, "sft": 50, "reward": 60, "baseline": 20, "ppo": 110, "evaluation": 10, "report": 5}
"""Seconds on two cores; the whole is promised in five minutes, imports included."""


def demo(overrides: Sequence[str], *, resume: bool, fresh: bool, plain: bool) -> None:
    """The packaged configuration, with budgets shown."""
    with resources.as_file(resources.files("lodestar.local") / "demo.yaml") as path:
        config = load_config(path, overrides)
    resume, fresh = _asked(config, resume, fresh)
    _run(config, resume=resume, fresh=fresh, plain=plain, budgets={k: float(v) for k, v in DEMO_BUDGETS.items()})


def run(path: Path, overrides: Sequence[str], *, resume: bool, fresh: bool, plain: bool) -> None:
    """A configuration of one's own."""
    config = load_config(path, overrides)
    resume, fresh = _asked(config, resume, fresh)
    _run(config, resume=resume, fresh=fresh, plain=plain, budgets=None)


def evaluate(path: Path, overrides: Sequence[str], *, plain: bool) -> None:
    """The stages after PPO once more."""
    from lodestar.local.launcher import reevaluate
    from lodestar.local.signals import Interrupted
    from lodestar.local.view import view_for

    config = load_config(path, overrides)
    try:
        folder = reevaluate(config, view_for(plain))
    except Interrupted as signal:
        raise typer.Exit(signal.exit_code) from None
    _tell(folder)


def report(root: Path) -> None:
    """Report and nothing else."""
    folder = RunFolder(root)
    if not folder.config.exists():
        raise FailedPrecondition(f"{root} is not a run's folder: it has no config.yaml")
    from lodestar.report import write_report

    write_report(folder)
    Console().print(f"[green]✓[/] {escape(str(folder.report))}")


def _run(config: RunConfig, *, resume: bool, fresh: bool, plain: bool, budgets: dict[str, float] | None) -> None:
    from lodestar.local.launcher import launch
    from lodestar.local.signals import Interrupted
    from lodestar.local.view import view_for

    try:
        folder = launch(config, view_for(plain), resume=resume, fresh=fresh, budgets=budgets)
    except Interrupted as signal:
        Console(stderr=True).print("stopped; the same command with [bold]--resume[/] goes on", highlight=False)
        raise typer.Exit(signal.exit_code) from None
    _tell(folder)


def _asked(config: RunConfig, resume: bool, fresh: bool) -> tuple[bool, bool]:
    """Resume and fresh; a person at a terminal whose folder is taken is asked."""
    if resume and fresh:
        raise typer.BadParameter("--resume and --fresh contradict each other")
    folder = RunFolder(Path(config.runs_dir) / config.name)
    if resume or fresh or not folder.config.exists() or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return resume, fresh
    state = "is finished" if folder.summary.exists() else "stopped half-way"
    answer = typer.prompt(f"{folder.root} holds a run that {state}. [r]esume, start a[f]resh or [q]uit", default="q")
    if answer.lower() not in ("r", "resume", "f", "afresh"):
        raise typer.Exit(0)
    return answer.lower().startswith("r"), not answer.lower().startswith("r")


def _tell(folder: RunFolder) -> None:
    """The result in three lines."""
    summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    rate, model = summary["win_rate"], summary["reward_model"]
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"[bold green]win rate {rate['value']:.1%}[/] [dim]({rate['low']:.1%}–{rate['high']:.1%}, n = {rate['n']}, "
        f"judge: {escape(str(rate['judge']))})[/] against the SFT model after {summary['steps']} PPO steps"
    )
    best = ", ".join(f"best-of-{n} {value:.1%}" for n, value in summary["best_of_n"].items())
    accuracy = f" · reward model accuracy {model['accuracy']:.1%}" if model else ""
    console.print(f"[dim]{best}{accuracy} · {summary['wall_seconds']:.0f} s[/]")
    console.print(f"report: {escape(str(folder.report))}")
