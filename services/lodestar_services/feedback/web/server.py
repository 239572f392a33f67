"""The HTTP server of the page: uvicorn, told to keep quiet about addresses and to leave signals to us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from lodestar_services.feedback.site import Site
from lodestar_services.feedback.web.app import build


def page_server(
    site: Site, *, tls: Path | None = None, proxy: str | None = None, drain_seconds: float = 20.0
) -> uvicorn.Server:
    """``await page_server(site).serve([socket])``; ``should_exit`` ends it.

    Args:
        tls: folder with tls.crt and tls.key.
        proxy: addresses of proxies whose X-Forwarded-For is believed.
        drain_seconds: for requests in flight when it ends.
    """
    files: dict[str, Any] = {}
    if tls is not None:
        files = {"ssl_certfile": str(tls / "tls.crt"), "ssl_keyfile": str(tls / "tls.key")}
    config = uvicorn.Config(
        build(site),
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


@contextmanager
def _signals_are_ours() -> Iterator[None]:
    yield
