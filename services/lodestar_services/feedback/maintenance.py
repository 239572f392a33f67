"""What is done about a service's data beside it, whether it runs or not: ``lodestar feedback invite``, ``export`` and
``backup``. A folder is the service's own, or that of a run that asks people."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lodestar.errors import ConfigError
from lodestar.recipe.folder import people_of
from lodestar_services.feedback import export as export_
from lodestar_services.feedback import people
from lodestar_services.feedback.__main__ import DATABASE, PAGE
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.site import Site


def invite(folder: Path, name: str, *, lead: bool, database: str | None, link: str | None) -> str:
    """The link of somebody new, or a fresh one.

    Raises:
        ConfigError: ``link`` is not given and no server has written the page's address.
        InvalidArgument: the name cannot be used.
    """
    place = people_of(folder)
    if link is None:
        try:
            link = json.loads((place / PAGE).read_text(encoding="utf-8"))["link"]
        except FileNotFoundError:
            raise ConfigError("--link", "no server has run in this folder; say how people reach the page") from None
    with closing(_database(place, database)) as opened:
        site = Site(opened, str(link))
        opened.migrate()
        return site.invitation(opened.transact(people.invite, name, "lead" if lead else "annotator", now=site.clock()))


def export(folder: Path, campaign: str, *, database: str | None) -> Iterator[dict[str, Any]]:
    """A campaign's rows, as of one moment."""
    with closing(_database(people_of(folder), database)) as opened:
        yield from opened.snapshot(export_.export, campaign)


def backup(folder: Path, to: Path, *, keep: int, database: str | None) -> Path:
    """A whole copy of the SQLite file, taken while people go on answering; the newest ``keep`` stay.

    Raises:
        ConfigError: there is no SQLite file, or it is damaged.
    """
    if database or os.environ.get(DATABASE):
        raise ConfigError("--database", "PostgreSQL is backed up by pg_dump --format=custom, not by this command")
    source = people_of(folder) / "feedback.sqlite"
    if not source.exists():
        raise ConfigError("FOLDER", f"{source} is not there")
    to.mkdir(parents=True, exist_ok=True)
    path = to / time.strftime("feedback-%Y%m%dT%H%M%SZ.sqlite", time.gmtime())
    temporary = path.with_suffix(".unfinished")
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as original,
        closing(sqlite3.connect(temporary)) as copy,
    ):
        original.backup(copy)
        (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise ConfigError("FOLDER", f"{source} is damaged: {verdict}; restore an older copy")
    temporary.chmod(0o600)
    temporary.replace(path)
    for old in sorted(to.glob("feedback-*.sqlite"))[:-keep]:
        old.unlink()
    return path


def _database(place: Path, database: str | None) -> Database:
    return Database(database or os.environ.get(DATABASE) or place)
