"""An HTTP server beside a gRPC server: an ASGI application on a bound socket, by uvicorn; signals stay ours."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestar.errors import ConfigError
from lodestar.rpc.certificates import CERTIFICATE, KEY
from lodestar.rpc.tls import TlsFolder

if TYPE_CHECKING:
    pass

RENEW_SECONDS = 5.0
"""Between looks at the certificate's files."""


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A bound and listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the port cannot be had; ``flag`` is named.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise ConfigError(flag, f"{reason}; choose another, or 0 for a free one") from None
    listening.listen(512)
    listening.setblocking(False)
    return listening


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
        import uvicorn

        self._tls = tls
        self._material = TlsFolder(tls) if tls is not None else None
        files: dict[str, Any] = {}
        if tls is not None:
            files = {"ssl_certfile": str(tls / CERTIFICATE), "ssl_keyfile": str(tls / KEY)}
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(drain_seconds),
            lifespan="off",
            **files,
        )
        logging.getLogger("uvicorn.access").disabled = True
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

    async def serve(self, listening: socket.socket, stopping: asyncio.Event) -> None:
        """Until ``stopping`` is set, and what was in flight then is answered."""
        import uvicorn

        server = uvicorn.Server(self._config)
        server.capture_signals = _signals_are_ours  # type: ignore[method-assign]  # lodestar.rpc.server hears them
        serving = asyncio.ensure_future(server.serve([listening]))
        renewing = asyncio.ensure_future(self._renew())
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
        finally:
            renewing.cancel()
            stopped.cancel()

    async def _renew(self) -> None:
        if self._material is None or self._tls is None:
            return
        held = self._material.material()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            newest = self._material.material()
            if newest is not held and self._config.ssl is not None:
                self._config.ssl.load_cert_chain(self._tls / CERTIFICATE, self._tls / KEY)
                held = newest


@contextmanager
def _signals_are_ours() -> Iterator[None]:
    yield
