"""Wires the page and FeedbackService; ``lodestar serve feedback`` and the label stage start it.

    main(FeedbackOptions(folder=Path("runs/demo/feedback")))

The folder then holds feedback.sqlite (unless a database is given), page.json with the page's address, and lead.link,
the first lead's invitation, readable by its owner alone: it is printed nowhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from lodestar.errors import ConfigError, Unavailable
from lodestar.rpc.binding import is_loopback
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import feedback_pb2, feedback_pb2_grpc
from lodestar_services.feedback import campaigns, export, people
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.options import FeedbackOptions
from lodestar_services.feedback.servicer import FeedbackServicer, measure
from lodestar_services.feedback.site import Site
from lodestar_services.feedback.tables import people as people_table
from lodestar_services.feedback.web.server import page_server

log = logging.getLogger(__name__)
NAME = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
MEASURE_SECONDS = 15.0
"""Between looks at the campaigns that are open, for the gauges."""


def main(options: FeedbackOptions) -> int:
    """Serves until SIGTERM; the exit code."""
    configure_logging(f"feedback-{options.replica}")
    listening = listen(options)
    site = Site(Database(options.database or options.folder), link_of(options, listening))
    add = partial(feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, FeedbackServicer(site))
    spec = ServerSpec(
        role="feedback",
        services=[Service(NAME, add)],
        run_dir=options.folder,
        warm=partial(_open, site, options),
        work=partial(_serve_page, site, options, listening),
        replica=options.replica,
        host=options.host,
        port=options.port,
        metrics_port=options.metrics_port,
        caller_port=options.caller_port,
        health_port=options.health_port,
        drain_seconds=options.drain_seconds,
        tls=options.tls,
        tokens=options.tokens,
        insecure=options.insecure,
        reflection=options.reflection,
    )
    try:
        return run(spec)
    finally:
        listening.close()
        site.database.close()


def invite(options: FeedbackOptions, name: str, role: people.PersonRole) -> str:
    """The link of somebody new, or a fresh one; works beside a running server (``lodestar feedback invite``).

    Raises:
        ConfigError: the options have no ``link`` and no server has written the page's address.
        InvalidArgument: the name cannot be used.
    """
    link = options.link
    if link is None:
        try:
            link = json.loads((options.folder / "page.json").read_text(encoding="utf-8"))["link"]
        except FileNotFoundError:
            raise ConfigError("--link", "no server has run in this folder; say how people reach the page") from None
    site = Site(Database(options.database or options.folder), str(link))
    try:
        site.database.migrate()
        return site.invitation(site.database.transact(people.invite, name, role, now=site.clock()))
    finally:
        site.database.close()


def listen(options: FeedbackOptions) -> socket.socket:
    """The page's socket, bound.

    Raises:
        ConfigError: the port cannot be had, or the page would be open to other machines without TLS.
    """
    if not (is_loopback(options.host) or options.page_tls or options.insecure):
        raise ConfigError(
            "--host",
            f"{options.host} is reachable from other machines, and the page has no TLS: give --page-tls, or say "
            "--insecure where a proxy in front speaks TLS",
        )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.page_port))
    except OSError as error:
        listening.close()
        reason = f"cannot listen on {options.host}:{options.page_port}: {error.strerror}"
        raise ConfigError("--page-port", f"{reason}; choose another, or 0 for a free one") from None
    listening.listen(512)
    listening.setblocking(False)
    return listening


def link_of(options: FeedbackOptions, listening: socket.socket) -> str:
    """Where people find the page."""
    if options.link is not None:
        return options.link
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{'https' if options.page_tls else 'http'}://{host}:{listening.getsockname()[1]}"


async def _open(site: Site, options: FeedbackOptions) -> None:
    """Migrates, invites the first lead, and says where the page is."""
    await asyncio.to_thread(site.database.migrate)
    if options.lead is not None:
        token = await site.database.run(_first_lead, options.lead, site)
        if token is not None:
            _write(options.folder / "lead.link", site.invitation(token) + "\n")
    _write(options.folder / "page.json", json.dumps({"link": site.link}))
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


async def _serve_page(site: Site, options: FeedbackOptions, listening: socket.socket, stopping: asyncio.Event) -> None:
    server = page_server(site, tls=options.page_tls, proxy=options.proxy, drain_seconds=options.drain_seconds)
    page = asyncio.ensure_future(server.serve([listening]))
    measuring = asyncio.ensure_future(_measure(site))
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([page, stopped], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await page
    finally:
        measuring.cancel()
        stopped.cancel()


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


if __name__ == "__main__":
    from lodestar_services.feedback.cli import run as run_command_line

    run_command_line()
