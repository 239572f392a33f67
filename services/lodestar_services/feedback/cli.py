"""``python -m lodestar_services.feedback``: serve, invite, export, backup."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lodestar.errors import ConfigError, LodestarError
from lodestar_services.feedback import export as export_
from lodestar_services.feedback.__main__ import invite, main
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.options import FeedbackOptions

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the database, the lead's link and state files.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar="LODESTAR_FEEDBACK_DATABASE", help="postgresql://user:password@host/name; unset is SQLite."),
]
Link = Annotated[str | None, typer.Option(help="Scheme, host and port that people type; unset is host and port.")]


@app.command()
def serve(
    folder: Folder,
    database: DatabaseUrl = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    page_port: Annotated[int, typer.Option(help="Of the page; 0 takes a free one.")] = 0,
    link: Link = None,
    page_tls: Annotated[Path | None, typer.Option(help="Folder with tls.crt and tls.key for the page.")] = None,
    proxy: Annotated[str | None, typer.Option(help="Proxies whose X-Forwarded-For is believed.")] = None,
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 0,
    caller_port: Annotated[int | None, typer.Option(envvar="LODESTAR_CALLER_PORT")] = None,
    health_port: Annotated[int | None, typer.Option(help="For probes, in plaintext.")] = None,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0 takes a free one.")] = 0,
    tls: Annotated[Path | None, typer.Option(envvar="LODESTAR_TLS", help="Of gRPC: ca.crt, tls.crt, tls.key.")] = None,
    tokens: Annotated[Path | None, typer.Option(envvar="LODESTAR_TOKENS")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", envvar="LODESTAR_INSECURE")] = False,
    replica: Annotated[int, typer.Option(help="Which of several processes on one database.")] = 0,
    lead: Annotated[str, typer.Option(help="Name of the first lead, whose link is in lead.link.")] = "lead",
) -> None:
    """The page and FeedbackService, until told to stop."""
    options = FeedbackOptions(
        folder=folder,
        database=database,
        host=host,
        page_port=page_port,
        link=link,
        page_tls=page_tls,
        proxy=proxy,
        port=port,
        caller_port=caller_port,
        health_port=health_port,
        metrics_port=metrics_port,
        tls=tls,
        tokens=tokens,
        insecure=insecure,
        replica=replica,
        lead=lead,
    )
    raise typer.Exit(main(options))


@app.command("invite")
def invite_(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Of the person.")],
    lead: Annotated[bool, typer.Option("--lead", help="May see all work, invite and close.")] = False,
    database: DatabaseUrl = None,
    link: Link = None,
) -> None:
    """Prints a person's link. A second invitation of a name replaces the first."""
    options = FeedbackOptions(folder=folder, database=database, link=link)
    typer.echo(invite(options, name, "lead" if lead else "annotator"))


@app.command("export")
def export_campaign(folder: Folder, campaign: str, database: DatabaseUrl = None) -> None:
    """Prints a campaign's rows as JSONL, as of now."""
    opened = Database(database or folder)
    try:
        for row in opened.snapshot(export_.export, campaign):
            typer.echo(json.dumps(row, ensure_ascii=False))
    finally:
        opened.close()


@app.command()
def backup(
    folder: Folder,
    to: Annotated[Path, typer.Argument(metavar="TO", help="Folder of the copies.")],
    keep: Annotated[int, typer.Option(min=1, help="Copies kept; older ones are deleted.")] = 14,
    database: DatabaseUrl = None,
) -> None:
    """A whole copy of the SQLite file, taken while people go on answering."""
    if database is not None:
        raise ConfigError("--database", "PostgreSQL is backed up by pg_dump --format=custom, not by this command")
    source = folder / "feedback.sqlite"
    if not source.exists():
        raise ConfigError("FOLDER", f"{source} is not there")
    to.mkdir(parents=True, exist_ok=True)
    path = to / time.strftime("feedback-%Y%m%dT%H%M%SZ.sqlite", time.gmtime())
    temporary = path.with_suffix(".unfinished")
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as original, sqlite3.connect(temporary) as copy:
        original.backup(copy)
        (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
    original.close()
    copy.close()
    if verdict != "ok":
        raise ConfigError("FOLDER", f"{source} is damaged: {verdict}; restore an older copy")
    temporary.chmod(0o600)
    temporary.replace(path)
    for old in sorted(to.glob("feedback-*.sqlite"))[:-keep]:
        old.unlink()
    typer.echo(path)


def run() -> None:
    """One sentence and an exit code for what goes wrong on purpose."""
    try:
        app()
    except LodestarError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
