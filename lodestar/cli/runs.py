"""``lodestar demo``, ``run``, ``train``, ``eval`` and ``report``: all of them conduct a plan on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from lodestar.config import RunConfig, load_config
from lodestar.recipe.conduct import Wanted
from lodestar.recipe.folder import RunFolder
from lodestar.recipe.plan import Plan, plan

DEMO_BUDGETS = {"data": 10, "sft": 50, "reward": 60, "ppo": 120, "evaluate": 25, "report": 5}
"""Seconds on two cores; the whole is promised in five minutes, imports included."""


def demo(overrides: Sequence[str], *, resume: bool, fresh: bool, plain: bool) -> None:
    """The packaged configuration, with budgets shown."""
    with resources.as_file(resources.files("lodestar.local") / "demo.yaml") as path:
        config = load_config(path, overrides)
    run_config(config, Wanted(), resume=resume, fresh=fresh, plain=plain, budgets=DEMO_BUDGETS)


def run(path: Path, overrides: Sequence[str], wanted: Wanted, *, resume: bool, fresh: bool, plain: bool) -> None:
    """A configuration of one's own; a part of it goes on with what the folder holds."""
    from lodestar.config.load import read_tree
    from lodestar.recipe.written import written_as_before

    if old := written_as_before(read_tree(path)):
        Console(stderr=True, highlight=False).print(
            f"[dim]{escape(str(path))} says {', '.join(old)} at its top, as before recipes: it runs as it is; "
            "lodestar config check shows how it is written now[/]"
        )
    run_config(load_config(path, overrides), wanted, resume=resume, fresh=fresh, plain=plain)


def train(stage: str, path: Path, overrides: Sequence[str], *, plain: bool) -> None:
    """Everything up to a stage that is not done."""
    run(path, overrides, Wanted(until=stage), resume=False, fresh=False, plain=plain)


def evaluate(path: Path, overrides: Sequence[str], *, plain: bool) -> None:
    """The last evaluation and what follows it, anew."""
    from lodestar.errors import ConfigError

    config = load_config(path, overrides)
    last = plan(config).last("evaluate")
    if last is None:
        raise ConfigError("stages", f"{path} has no evaluate stage; add evaluate: {{}}")
    run_config(config, Wanted(begin=last.name), resume=False, fresh=False, plain=plain)


def report(root: Path) -> None:
    """Summary and report and nothing else."""
    RunFolder.open(root)  # before what takes long to import
    from lodestar.report import write_report, write_summary

    write_summary(root)
    Console().print(f"[green]✓[/] {escape(str(write_report(root)))}")


def run_config(
    config: RunConfig,
    wanted: Wanted,
    *,
    resume: bool,
    fresh: bool,
    plain: bool,
    budgets: Mapping[str, float] | None = None,
) -> None:
    """Conducts a run, or a part of it, and tells how it ended."""
    from lodestar.crew.here import run_here
    from lodestar.local.signals import Interrupted
    from lodestar.local.view import view_for

    planned = plan(config)
    part = any((wanted.only, wanted.begin, wanted.until))
    resume, fresh = (True, fresh) if part and not fresh else _asked(config, resume, fresh)
    try:
        root = run_here(
            config, planned, view_for(plain), wanted, resume=resume, fresh=fresh, begins=part, budgets=budgets or {}
        )
    except Interrupted as signal:
        Console(stderr=True).print("stopped; the same command with [bold]--resume[/] goes on", highlight=False)
        raise typer.Exit(signal.exit_code) from None
    _tell(root, planned, wanted)


def _asked(config: RunConfig, resume: bool, fresh: bool) -> tuple[bool, bool]:
    """Resume and fresh; a person at a terminal whose folder is taken is asked."""
    if resume and fresh:
        raise typer.BadParameter("--resume and --fresh contradict each other")
    root = Path(config.runs_dir) / config.name
    if resume or fresh or not (root / "config.yaml").exists() or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return resume, fresh
    state = "is finished" if (root / "summary.json").exists() else "stopped half-way"
    answer = typer.prompt(f"{root} holds a run that {state}. [r]esume, start a[f]resh or [q]uit", default="q")
    if answer.lower() not in ("r", "resume", "f", "afresh"):
        raise typer.Exit(0)
    return answer.lower().startswith("r"), not answer.lower().startswith("r")


def _tell(root: Path, planned: Plan, wanted: Wanted) -> None:
    """The result in a few lines."""
    from lodestar.files import read_json

    console = Console(soft_wrap=True, highlight=False)
    last = wanted.only or wanted.until
    if last is not None or not (root / "summary.json").exists():
        step = planned.step(last) if last else planned.steps[-1]
        for port in step.makes:
            console.print(f"[green]✓[/] {root / step.name / port}")
        return
    _tell_summary(console, read_json(root / "summary.json"))
    console.print(f"report: {root / 'report.html'}")


def _tell_summary(console: Console, summary: Mapping[str, Any]) -> None:
    rate, model = summary["win_rate"], summary["reward_model"]
    if rate:
        console.print(
            f"[bold green]win rate {rate['value']:.1%}[/] [dim]({rate['low']:.1%}–{rate['high']:.1%}, n = {rate['n']}, "
            f"judge: {rate['judge']})[/] against the model it started from, after {summary['steps']} PPO steps"
        )
    if learned := summary.get("learned"):
        console.print(learned["sentence"])
    rivals: Mapping[str, Any] = summary["rivals"] or {}
    beaten = [f"{name.replace('_', ' ')} {row['against_policy']['value']:.1%}" for name, row in rivals.items()]
    accuracy = [f"reward model accuracy {model['accuracy']:.1%}"] if model else []
    figures = [f"wins against {', '.join(beaten)}" if beaten else "", *accuracy, f"{summary['wall_seconds']:.0f} s"]
    console.print(f"[dim]{' · '.join(filter(None, figures))}[/]")
