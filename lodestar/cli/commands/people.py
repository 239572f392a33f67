"""What people said, beside the page where they say it: feedback invite, export, backup."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lodestar.errors import LodestarError

GROUP = "lodestar.feedback"
"""Entry-point group: command → its function, in the distribution that brings the service."""
Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Of lodestar serve feedback, or of a run that asks people.")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar="LODESTAR_FEEDBACK_DATABASE", help="postgresql://user:password@host/name; unset is SQLite."),
]


def invite(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Of the person.", show_default=False)],
    lead: Annotated[bool, typer.Option("--lead", help="May see all work, invite and close.")] = False,
    database: DatabaseUrl = None,
    link: Annotated[
        str | None, typer.Option(help="Scheme, host and port that people type; unset: as the page last ran.")
    ] = None,
) -> None:
    """Print a person's link, once; it works while the page runs. A second invitation of a name replaces the first."""
    typer.echo(_does("invite")(folder, name, lead=lead, database=database, link=link))


def export(
    folder: Folder,
    campaign: Annotated[str, typer.Argument(metavar="CAMPAIGN", help="As the page names it.", show_default=False)],
    database: DatabaseUrl = None,
) -> None:
    """Print a campaign's rows as JSONL (lodestar data check reads them), as of now."""
    for row in _does("export")(folder, campaign, database=database):
        typer.echo(json.dumps(row, ensure_ascii=False))


def backup(
    folder: Folder,
    to: Annotated[Path, typer.Argument(metavar="TO", help="Folder of the copies.", show_default=False)],
    keep: Annotated[int, typer.Option(min=1, help="Copies kept; older ones are deleted.")] = 14,
    database: DatabaseUrl = None,
) -> None:
    """Copy the SQLite file whole while people go on answering, and check the copy."""
    typer.echo(_does("backup")(folder, to, keep=keep, database=database))


def _does(command: str) -> Any:
    found = list(importlib.metadata.entry_points(group=GROUP, name=command))
    if not found:
        raise LodestarError("no feedback service is installed; reinstall lodestar-rlhf")
    return found[0].load()
