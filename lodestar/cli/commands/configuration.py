"""A run's configuration: init, config check, config options, config schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Config, Overrides


def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where models and rows are.")] = Path("."),
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML to write.")] = Path("run.yaml"),
    name: Annotated[str | None, typer.Option(help="The run's name; unset is the folder's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented YAML for what is found in a folder: a model, preferences, demonstrations, prompts."""
    from lodestar.cli.init import init

    init(folder, output, name=name, force=force)


def check(config: Config, overrides: Overrides = None) -> None:
    """Say whether the file can be run: its plan as a table, what is done, and how an older file is written now."""
    from lodestar.cli.config import check

    check(config, overrides or [])


def options(
    page: Annotated[
        str | None, typer.Argument(metavar="[PAGE]", help="ppo, ppo.kl, services.policy, model, run; unset: which.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All pages as Markdown: docs/options.md.")] = False,
) -> None:
    """What may be set: every option with its default, what it may be, and what it means."""
    from lodestar.cli.config import options

    options(page, as_markdown=markdown)


def schema(
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="A stage's options alone.")] = None,
) -> None:
    """Every option with its type, default and meaning, as JSON Schema."""
    from lodestar.cli.config import schema

    schema(stage)
