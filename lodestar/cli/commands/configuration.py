"""A run's configuration: config check, config schema."""

from __future__ import annotations

from pathlib import Path

import typer

from lodestar.cli.commands.arguments import Config, Overrides


def check(config: Config, overrides: Overrides = None) -> None:
    """Say whether the file can be run, and what is wrong when it cannot."""
    from lodestar.config import load_config

    loaded = load_config(config, overrides or [])
    typer.echo(f"{config}: fine; run {loaded.name} would write to {Path(loaded.runs_dir) / loaded.name}")


def schema() -> None:
    """Every option with its type, default and meaning, as JSON Schema."""
    import json

    from lodestar.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
