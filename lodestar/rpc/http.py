"""An HTTP server beside a gRPC server: an ASGI application on a bound socket, by uvicorn; signals stay ours, and no
address is logged."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestar.errors import ConfigError
from lodestar.rpc.certificates import CERTIFICATE, KEY
from lodestar.rpc.tls import TlsFolder

if TYPE_CHECKING:
    import uvicorn

RENEW_SECONDS = 5.0
"""Between looks at the certificate's files."""


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A bound and listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the port cannot be had; ``flag`` is named.
    """
    try:
        return bound(host, port)
    except OSError as error:
        reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise ConfigError(flag, f"{reason}; choose another, or 0 for a free one") from None


def bound(host: str, port: int) -> socket.socket:
    """As listen.

    Raises:
        OSError: the port cannot be had.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    listening.listen(512)
    listening.setblocking(False)
    return listening


def server_of(
    app: Any, *, tls: Path | None = None, proxy: str | None = None, drain_seconds: float = 20.0
) -> uvicorn.Server:
    """``await serve_until(server_of(app), listening, stopping, work)``.

    Args:
        tls: folder with tls.crt and tls.key.
        proxy: addresses of proxies whose X-Forwarded-For is believed.
        drain_seconds: for requests in flight when it ends.
    """
    import uvicorn

    files: dict[str, Any] = {}
    if tls is not None:
        files = {"ssl_certfile": str(tls / CERTIFICATE), "ssl_keyfile": str(tls / KEY)}
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy,
        server_header=False,
        timeout_graceful_shutdown=int(drain_seconds),
        lifespan="off",
        **files,
    )
    logging.getLogger("uvicorn.access").disabled = True  # an invitation's address is its token
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(config)
    server.capture_signals = _signals_are_ours  # type: ignore[method-assign]  # lodestar.rpc.server hears them
    return server


async def serve_until(
    server: uvicorn.Server, listening: socket.socket, stopping: asyncio.Event, beside: Coroutine[Any, Any, None]
) -> None:
    """Until ``stopping`` is set, and what was in flight then is answered; ``beside`` goes on as long."""
    serving = asyncio.ensure_future(server.serve([listening]))
    other = asyncio.ensure_future(beside)
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        other.cancel()
        stopped.cancel()


class HttpServer:
    """``await HttpServer(app, tls=None).serve(listening, stopping)``."""

    def __init__(self, app: Any, *, tls: Path | None = None, drain_seconds: float = 20.0) -> None:
        """
        Args:
            tls: folder with tls.crt and tls.key; changed files are used from the next connection on.
            drain_seconds: for requests in flight when it ends.

        Raises:
            ConfigError: the folder cannot be used.
        """
        self._tls = tls
        self._material = TlsFolder(tls) if tls is not None else None
        self._server = server_of(app, tls=tls, drain_seconds=drain_seconds)

    async def serve(self, listening: socket.socket, stopping: asyncio.Event) -> None:
        """Until ``stopping`` is set, and what was in flight then is answered."""
        await serve_until(self._server, listening, stopping, self._renew())

    async def _renew(self) -> None:
        if self._material is None or self._tls is None:
            return
        held = self._material.material()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            newest = self._material.material()
            if newest is not held and self._server.config.ssl is not None:
                self._server.config.ssl.load_cert_chain(self._tls / CERTIFICATE, self._tls / KEY)
                held = newest


@contextmanager
def _signals_are_ours() -> Iterator[None]:
    yield
