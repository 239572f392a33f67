"""Wires the page and FeedbackService; ``lodestar serve feedback`` and runs that ask people start it.

    main(FeedbackTask(run="campaigns", folder=Path("campaigns")))

The folder then holds feedback.sqlite (unless a database is given), page.json with the page's address, and lead.link,
the first lead's invitation, readable by its owner alone: it is printed nowhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from lodestar.config.serve import FeedbackTask
from lodestar.errors import ConfigError, Unavailable
from lodestar.rpc import http
from lodestar.rpc.binding import is_loopback
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import feedback_pb2, feedback_pb2_grpc
from lodestar_services.feedback import campaigns, export, people
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.servicer import FeedbackServicer, measure
from lodestar_services.feedback.site import Site
from lodestar_services.feedback.tables import people as people_table
from lodestar_services.feedback.web.app import build

log = logging.getLogger(__name__)
NAME = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
DATABASE = "LODESTAR_FEEDBACK_DATABASE"
"""Variable of the database's URL, which may hold a password."""
PAGE, LEAD = "page.json", "lead.link"
MEASURE_SECONDS = 15.0
"""Between looks at the campaigns that are open, for the gauges."""


def main(task: FeedbackTask) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"{task.name}-{task.listening.replica}")
    task.place.mkdir(parents=True, exist_ok=True)
    listening = listen(task)
    site = Site(Database(database_of(task)), link_of(task, listening))
    add = partial(feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, FeedbackServicer(site))
    drain_seconds = task.section.drain_seconds
    spec = ServerSpec.of_listening(
        task.name, task.folder, task.listening, [Service(NAME, add)], drain_seconds=drain_seconds
    )
    warm, work = partial(_open, site, task, listening), partial(_serve_page, site, task, listening)
    try:
        return run(replace(spec, warm=warm, work=work))
    finally:
        listening.close()
        site.database.close()


def database_of(task: FeedbackTask) -> str | Path:
    """URL of the database, or the folder of the SQLite file."""
    return task.section.database or os.environ.get(DATABASE) or task.place


def listen(task: FeedbackTask) -> socket.socket:
    """The page's socket, bound: to the port that is asked for, else to the one of the last start, else to a free one.

    Raises:
        ConfigError: the port cannot be had, or the page would be open to other machines without TLS.
    """
    section, host = task.section, page_host(task)
    if not (is_loopback(host) or section.page_tls or task.listening.insecure):
        raise ConfigError(
            "page_host",
            f"{host} is reachable from other machines, and the page has no TLS: give page_tls, or say --insecure where "
            "a proxy in front speaks TLS",
        )
    last = 0 if section.page_port else _last_port(task.place)
    if last:
        try:
            return http.bound(host, last)
        except OSError as error:
            log.warning("the page's last port, %d, cannot be had (%s); links of before lead nowhere", last, error)
    return http.listen(host, section.page_port, "page_port")


def page_host(task: FeedbackTask) -> str:
    """Where the page listens."""
    return task.section.page_host or task.listening.host


def link_of(task: FeedbackTask, listening: socket.socket) -> str:
    """Where people find the page."""
    if task.section.link is not None:
        return task.section.link
    host = page_host(task)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if task.section.page_tls else 'http'}://{host}:{listening.getsockname()[1]}"


def _last_port(folder: Path) -> int:
    """Of the last start in this folder; 0 where there was none."""
    try:
        return int(json.loads((folder / PAGE).read_text(encoding="utf-8"))["port"])
    except (FileNotFoundError, KeyError):
        return 0


async def _open(site: Site, task: FeedbackTask, listening: socket.socket) -> None:
    """Migrates, invites the first lead, and says where the page is."""
    await asyncio.to_thread(site.database.migrate)
    if task.section.lead is not None:
        token = await site.database.run(_first_lead, task.section.lead, site)
        if token is not None:
            _write(task.place / LEAD, site.invitation(token) + "\n")
    _write(task.place / PAGE, json.dumps({"link": site.link, "port": listening.getsockname()[1]}))
    log.info("people judge at %s (%s)", site.link, site.database.name)


def _first_lead(connection: sa.Connection, name: str, site: Site) -> str | None:
    leads = sa.select(sa.func.count()).select_from(people_table).where(people_table.c.role == "lead")
    if connection.scalar(leads):
        return None
    return people.invite(connection, name, "lead", now=site.clock())


def _write(path: Path, text: str) -> None:
    """For its owner's eyes, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


async def _serve_page(site: Site, task: FeedbackTask, listening: socket.socket, stopping: asyncio.Event) -> None:
    section = task.section
    app = build(site)
    server = http.server_of(app, tls=section.page_tls, proxy=section.proxy, drain_seconds=section.drain_seconds)
    await http.serve_until(server, listening, stopping, _measure(site))


async def _measure(site: Site) -> None:
    """The gauges of campaigns that are open, for as long as the page is."""
    while True:
        try:
            opened = [one for one in await site.database.read(campaigns.listed) if not one.closed]
            for one in opened:
                measure(await site.database.read(export.progress, one.settings.name, site))
        except Unavailable as error:
            log.warning("the campaigns are not counted now: %s", error)
        await asyncio.sleep(MEASURE_SECONDS)
