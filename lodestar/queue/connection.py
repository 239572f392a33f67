"""Connections to Redis, and patience while it is away."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff

from lodestar.errors import ConfigError, QueueUnavailable
from lodestar.rpc.certificates import AUTHORITY, CERTIFICATE, KEY
from lodestar.rpc.tls import TlsFolder

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""How long Redis may be away before QueueUnavailable."""
SOCKET_SECONDS = 10.0
"""A reply slower than this counts as a lost connection; blocking reads stay well below."""
BLOCK_SECONDS = 1.0
"""Longest blocking read; also how often, at least, a worker looks for abandoned claims and a new incarnation."""
WORKER_CONNECTIONS = 16
"""Sockets of one worker; its calls queue for them."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0

_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "socket_timeout": SOCKET_SECONDS,
    "socket_connect_timeout": 3.0,
    "socket_keepalive": True,
}
_WRONG_PASSWORD = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)
_AWAY = (redis.ConnectionError, redis.TimeoutError)
_TEMPORARY = (
    "READONLY", "OOM command", "MISCONF", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY Redis",
)  # fmt: skip
"""Replies of a Redis that fails over, starts, or is full."""


class Outage:
    """The time Redis is away, told apart from a mistake of ours: pauses that double until the budget is spent."""

    def __init__(self, url: str, budget_seconds: float) -> None:
        self._url = redacted(url)
        self._budget = budget_seconds
        self._since: float | None = None
        self._pause = FIRST_PAUSE_SECONDS

    def pause_after(self, error: redis.RedisError) -> float:
        """Seconds to wait before the next try.

        Raises:
            QueueUnavailable: the budget is spent, or trying again cannot help (a wrong password).
            redis.RedisError: the error itself, when it is not about Redis being away.
        """
        if isinstance(error, _WRONG_PASSWORD):
            raise QueueUnavailable(f"Redis at {self._url} refuses us: {error}; check the user and password") from error
        if not isinstance(error, _AWAY) and not any(word in str(error) for word in _TEMPORARY):
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
            log.warning("Redis at %s does not serve us (%s); trying for %.0f s", self._url, error, self._budget)
        if now + self._pause - self._since > self._budget:
            raise QueueUnavailable(
                f"Redis at {self._url} did not serve us for {self._budget:.0f} s: {error}; "
                "is it running, and is queue.url right?"
            ) from error
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return pause

    def over(self) -> None:
        """Redis answered."""
        if self._since is not None:
            log.info("Redis at %s is back after %.1f s", self._url, time.monotonic() - self._since)
            self._since, self._pause = None, FIRST_PAUSE_SECONDS


def tls_options(url: str, tls: Path | None) -> dict[str, Any]:
    """redis-py's options for a rediss:// URL: our authority and, where there is one, our certificate.

    Raises:
        ConfigError: the folder is missing something.
    """
    if tls is None or not url.startswith("rediss://"):
        return {}
    TlsFolder(tls)  # says what is wrong with the files; OpenSSL would not
    options = {"ssl_ca_certs": str(tls / AUTHORITY)}
    if (tls / CERTIFICATE).exists():
        options |= {"ssl_certfile": str(tls / CERTIFICATE), "ssl_keyfile": str(tls / KEY)}
    return options


class _FollowingConnection(redis.asyncio.SSLConnection):
    """Reads its TLS files for every connection, as the blocking one does: they may have been renewed."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        self.ssl_context.context = None
        return super()._connection_arguments()


def connect(url: str, tls: Path | None = None) -> Any:
    """A client that leaves trying again to us; a rediss:// URL speaks TLS with the files in ``tls``.

    Raises:
        ConfigError: the URL cannot be one of Redis.
    """
    try:
        options = {**_OPTIONS, **tls_options(url, tls)}
        return redis.Redis.from_url(url, retry=redis.retry.Retry(NoBackoff(), 0), **options)
    except ValueError as error:
        raise ConfigError("queue.url", f"{redacted(url)}: {error}") from error


def connect_async(url: str, tls: Path | None = None) -> Any:
    """An asyncio client with a bounded pool; otherwise as :func:`connect`."""
    try:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=WORKER_CONNECTIONS,
            timeout=None,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
            **_OPTIONS,
            **tls_options(url, tls),
        )
    except ValueError as error:
        raise ConfigError("queue.url", f"{redacted(url)}: {error}") from error
    if pool.connection_class is redis.asyncio.SSLConnection:
        pool.connection_class = _FollowingConnection
    return redis.asyncio.Redis(connection_pool=pool)


def no_group(error: redis.ResponseError) -> bool:
    """The streams are gone; UNBLOCKED is what Redis 7 tells a reader that waits while they go."""
    return "NOGROUP" in str(error) or "UNBLOCKED" in str(error)


def milliseconds(seconds: float) -> int | None:
    """BLOCK's argument; None does not block, where 0 would block for ever."""
    return round(1000 * seconds) or None


def redacted(url: str) -> str:
    """The URL without its password: ``redis://user:***@host:6379/0``."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)
