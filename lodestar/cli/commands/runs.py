"""Runs on this machine: demo, run, train, eval, report."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Config, Fresh, Overrides, Plain, Resume


class Stage(enum.StrEnum):
    """The supervised stages."""

    pretrain = "pretrain"
    sft = "sft"
    reward = "reward"


def demo(
    overrides: Overrides = None,
    resume: Resume = False,
    fresh: Fresh = False,
    plain: Plain = False,
) -> None:
    """A tiny model learns from the preferences of simulated people, in about five minutes on a laptop."""
    from lodestar.cli import runs

    runs.demo(overrides or [], resume=resume, fresh=fresh, plain=plain)


def run(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    fresh: Fresh = False,
    plain: Plain = False,
) -> None:
    """The whole pipeline on this machine: data, SFT, reward model, PPO through the services, evaluation, report."""
    from lodestar.cli import runs

    runs.run(config, overrides or [], resume=resume, fresh=fresh, plain=plain)


def train(
    stage: Annotated[Stage, typer.Argument(help="Which training stage.", show_default=False)],
    config: Config,
    overrides: Overrides = None,
) -> None:
    """One supervised stage in this process; makes the run's data first where it is missing."""
    from lodestar.cli.train import train

    train(stage.value, config, overrides or [])


def evaluate(config: Config, overrides: Overrides = None, plain: Plain = False) -> None:
    """Win rate, best-of-n and report of a trained run once more; evaluation.* options may differ from the run's."""
    from lodestar.cli import runs

    runs.evaluate(config, overrides or [], plain=plain)


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]) -> None:
    """Write report.html again from what a run's folder holds."""
    from lodestar.cli import runs

    runs.report(run)
