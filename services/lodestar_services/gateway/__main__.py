"""Wires the gateway: an HTTP server over policy servers, with health and metrics as every service has them."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace
from functools import partial

from lodestar.config import GatewayTask
from lodestar.errors import ConfigError
from lodestar.rpc.binding import is_loopback
from lodestar.rpc.http import HttpServer, listen
from lodestar.rpc.server import configure_logging, run
from lodestar.rpc.spec import ServerSpec
from lodestar_services.gateway.app import build
from lodestar_services.gateway.endpoint import TRAINING_METHOD, Door
from lodestar_services.gateway.gateway import Gateway

log = logging.getLogger(__name__)


def main(task: GatewayTask) -> int:
    """Serves until SIGTERM; the exit code.

    Raises:
        ConfigError: a port is taken, or other machines would reach the API without TLS or tokens.
    """
    configure_logging(f"{task.name}-{task.listening.replica}")
    check_exposure(task)
    at = task.listening
    listening = listen(at.host, at.http_port, "--http-port")
    gateway = Gateway(task)
    spec = ServerSpec.of(task, None, [], warm=gateway.open, work=partial(serve, gateway, task, listening))
    try:
        return run(replace(spec, http_port=listening.getsockname()[1], drain_seconds=task.section.drain_seconds))
    finally:
        listening.close()


def check_exposure(task: GatewayTask) -> None:
    """
    Raises:
        ConfigError: other machines would reach the API without a token, or send it in plaintext.
    """
    at = task.listening
    if is_loopback(at.host) or at.insecure:
        return
    certified = at.http_tls or at.tls
    if certified is None or at.tokens is None:
        missing = "--tls" if certified is None else "--tokens"
        raise ConfigError(
            missing,
            f"{at.host} is reachable from other machines: the gateway wants --tls and --tokens there; say --insecure "
            "where a proxy in front sees to both",
        )


async def serve(gateway: Gateway, task: GatewayTask, listening: socket.socket, stopping: asyncio.Event) -> None:
    """The HTTP server, until ``stopping`` is set and what was in flight is answered."""
    at = task.listening
    app = build(gateway, Door(task.section, at.tokens), Door(task.section, at.tokens, TRAINING_METHOD))
    certified = at.http_tls or at.tls
    server = HttpServer(app, tls=certified, drain_seconds=task.section.drain_seconds)
    host = f"[{at.host}]" if ":" in at.host else at.host
    scheme = "https" if certified else "http"
    where = f"{scheme}://{host}:{listening.getsockname()[1]}"
    if gateway.generates:
        log.info("OpenAI's API at %s/v1", where)
    if gateway.tinker is not None:
        log.info("tinker's API at %s: TINKER_BASE_URL=%s TINKER_API_KEY=tml-…", where, where)
    try:
        await server.serve(listening, stopping)
    finally:
        await gateway.close()
