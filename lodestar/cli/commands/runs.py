"""Runs on this machine: demo, run, train, eval, report."""

from __future__ import annotations

from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Config, Fresh, Overrides, Plain, Resume, Run

StageName = Annotated[str, typer.Argument(metavar="STAGE", help="sft, reward, r2.ppo …", show_default=False)]


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
    begin: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="This stage and all after it, anew.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="This stage alone; its inputs must be there.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Nothing after this stage.")] = None,
    plain: Plain = False,
) -> None:
    """A run's stages on this machine, as its recipe has them; what is done already is not done again."""
    from lodestar.cli import runs
    from lodestar.recipe.conduct import Wanted

    wanted = Wanted(only=only, begin=begin, until=until)
    runs.run(config, overrides or [], wanted, resume=resume, fresh=fresh, plain=plain)


def train(stage: StageName, config: Config, overrides: Overrides = None, plain: Plain = False) -> None:
    """One stage, and what it takes where that is not made yet: run --until STAGE."""
    from lodestar.cli import runs

    runs.train(stage, config, overrides or [], plain=plain)


def evaluate(config: Config, overrides: Overrides = None, plain: Plain = False) -> None:
    """The evaluation and the report once more: run --from evaluate. Its options may differ from the run's."""
    from lodestar.cli import runs

    runs.evaluate(config, overrides or [], plain=plain)


def report(run: Run) -> None:
    """Write summary.json and report.html again from what a run's folder holds."""
    from lodestar.cli import runs

    runs.report(run)
