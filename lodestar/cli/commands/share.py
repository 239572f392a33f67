"""What a run made, for others: export, push."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]


class Format(enum.StrEnum):
    """Of a table."""

    csv = "csv"
    parquet = "parquet"


def export(
    run: Run,
    output: Annotated[Path | None, typer.Option(help="Folder; unset is export/ in the run's.")] = None,
    stage: Annotated[str | None, typer.Option(help="Of one stage alone: ppo, r2.ppo …")] = None,
    formats: Annotated[list[Format] | None, typer.Option("--format", help="csv, parquet; unset is both.")] = None,
) -> None:
    """Write a run's figures as tables for other programs: a row per step, the names of metrics.jsonl."""
    from lodestar.cli.export import export

    for path in export(run, output, stage, [one.value for one in formats or list(Format)]):
        typer.echo(path)


def push(
    run: Run,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="OWNER/NAME on the hub.", show_default=False)],
    artifact: Annotated[
        str | None, typer.Option(help="STAGE/PORT of a model or reward model; unset is the newest model.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The hub's name of a license, such as apache-2.0; unset says none.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Where the repository is made: for its owner alone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the card, and send nothing.")] = False,
) -> None:
    """Send a run's model to a hub, with a card made from what the run measured (the hub's token: HF_TOKEN)."""
    from lodestar.cli.push import gathered, listed, push

    files = gathered(run, artifact, repository=repository, licence=licence)
    if dry_run:
        typer.echo(listed(files))
        return
    typer.echo(push(repository, files, private=private, message=f"{run.resolve().name} by Lodestar"))
