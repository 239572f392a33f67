"""``lodestar demo``, ``run``, ``train``, ``eval`` and ``report``: all of them conduct a plan on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from lodestar.config import RunConfig, load_config
from lodestar.recipe import named
from lodestar.recipe.conduct import Wanted
from lodestar.recipe.plan import plan

if TYPE_CHECKING:
    from lodestar.crew.here import View

DEMO_BUDGETS = {"data": 15, "sft": 25, "reward": 85, "filtered": 10, "ppo": 75, "evaluate": 45, "report": 5}
"""Seconds on two cores; the whole is promised in five minutes, imports included."""


def demo(overrides: Sequence[str], *, resume: bool, fresh: bool, plain: bool) -> None:
    """The packaged configuration, with budgets shown."""
    with resources.as_file(resources.files("lodestar.local") / "demo.yaml") as path:
        config = load_config(path, overrides)
    again = ["lodestar", "demo", *overrides]
    conduct_config(config, Wanted(), again, resume=resume, fresh=fresh, plain=plain, budgets=DEMO_BUDGETS)


def run(path: Path, overrides: Sequence[str], wanted: Wanted, *, resume: bool, fresh: bool, plain: bool) -> None:
    """A configuration of one's own; a part of it goes on with what the folder holds."""
    from lodestar.config.load import read_tree
    from lodestar.recipe.written import written_as_before

    if old := written_as_before(read_tree(path)) if path.is_file() else []:
        Console(stderr=True, highlight=False).print(
            f"[dim]{escape(str(path))} says {', '.join(old)} at its top, as before recipes: it runs as it is; "
            "lodestar config check shows how it is written now[/]"
        )
    again = ["lodestar", "run", str(path), *overrides]
    config = named.run_config(path, [*overrides])
    conduct_config(config, wanted, again, resume=resume, fresh=fresh, plain=plain)


def train(stage: str, path: Path, overrides: Sequence[str], *, plain: bool) -> None:
    """Everything up to a stage that is not done."""
    run(path, overrides, Wanted(until=stage), resume=False, fresh=False, plain=plain)


def evaluate(path: Path, overrides: Sequence[str], *, plain: bool) -> None:
    """The last evaluation and what follows it, anew."""
    from lodestar.errors import ConfigError, FailedPrecondition

    config = named.run_config(path, [*overrides])
    last = plan(config).last("evaluate")
    if last is None:
        raise ConfigError("stages", f"{path} has no evaluate stage; add evaluate: {{}}")
    root = Path(config.runs_dir) / config.name
    if not named.is_run(root):
        raise FailedPrecondition(f"{root} holds no run to evaluate: lodestar run {path} starts it")
    again = ["lodestar", "eval", str(path), *overrides]
    conduct_config(config, Wanted(begin=last.name), again, resume=False, fresh=False, plain=plain)


def report(what: Path) -> None:
    """Summary and report and nothing else."""
    root = named.run_folder(what).root  # before what takes long to import
    from lodestar.report import write_report, write_summary

    write_summary(root)
    Console().print(f"[green]✓[/] {escape(str(write_report(root)))}")


def conduct_config(
    config: RunConfig,
    wanted: Wanted,
    again: Sequence[str],
    *,
    resume: bool,
    fresh: bool,
    plain: bool,
    budgets: Mapping[str, float] | None = None,
    view: View | None = None,
) -> None:
    """Conducts a run, or a part of it, and tells how it ended.

    Args:
        again: the command that goes on with it.
        view: takes the place of the usual one.
    """
    from lodestar.cli.ending import tell
    from lodestar.crew.here import run_here
    from lodestar.local.signals import Interrupted
    from lodestar.local.view import view_for

    planned = plan(config)
    part = any((wanted.only, wanted.begin, wanted.until))
    resume, fresh = (True, fresh) if part and not fresh else _asked(config, resume, fresh)
    try:
        root = run_here(
            config,
            planned,
            view or view_for(plain),
            wanted,
            resume=resume,
            fresh=fresh,
            begins=part,
            budgets=budgets or {},
        )
    except Interrupted as signal:
        words = [
            *again,
            *(f"{flag}={name}" for flag, name in (("--only", wanted.only), ("--until", wanted.until)) if name),
        ]
        words += ["--resume"] if again[1] in ("run", "demo") else []
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"stopped; {shlex.join(words)} goes on", markup=False
        )
        raise typer.Exit(signal.exit_code) from None
    tell(root, wanted.only or wanted.until)


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
