"""What Redis's refusals mean: those that pass are waited for, as long as an option says; the others end the run.

Decided by class and status code. redis-py takes the code off the message for those it knows, leaves it as the first
word of those that it does not (MISCONF, NOREPLICAS …), and Redis 6.2 hides the code of a command refused inside a
script in the text of an ERR.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis
from redis.exceptions import RedisClusterException

from lodestar import metrics
from lodestar.errors import QueueUnavailable
from lodestar.queue.address import PASSWORD_VARIABLE, RedisAddress

log = logging.getLogger(__name__)

T = TypeVar("T")

OUTAGE_SECONDS = 600.0
"""How long Redis may be away before QueueUnavailable."""
CLOSING_SECONDS = 5.0
"""The same for what is done on the way out, which nobody should have to wait for."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0
SAY_EVERY_SECONDS = 60.0
"""How often a wait is logged."""

ERRORS = (redis.RedisError, RedisClusterException)
"""What redis-py raises: those of a Cluster are no RedisErrors."""

TEMPORARY = {
    "BUSY": "it runs somebody's long script",
    "CLUSTERDOWN": "its cluster is down",
    "KILLED": "an administrator killed the script",
    "LOADING": "it loads its data",
    "MASTERDOWN": "it lost its master",
    "MAXCLIENTS": "it has no connection left",
    "MISCONF": "it cannot write to its disk",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write",
    "OOM": "it reached maxmemory",
    "READONLY": "it is a replica now",
    "TRYAGAIN": "it moves our keys to another node",
    "UNBLOCKED": "it failed over while we waited",
}
"""Codes of refusals that pass by themselves, or once an operator has acted."""
REDIRECTIONS = ("ASK", "MOVED")
"""A Cluster's client follows them; when it gives up, the cluster is changing."""
_REMEDIES = {
    "ASK": "it belongs to a Cluster: write redis+cluster:// for redis:// in queue.url",
    "AUTH": f"check the user in queue.url and the password in queue.password_file or {PASSWORD_VARIABLE}",
    "CERTIFICATE": "check the certificates in --tls, or ssl_ca_certs in queue.url",
    "DB": "check the number of the database at the end of queue.url",
    "DENIED": "it admits its own machine alone: set a password, or protected-mode no",
    "NOPERM": "the user needs the keys ~lodestar:* and the commands of streams, hashes, strings, scripts, and INFO",
    "WRONGTYPE": "another program wrote to our keys; give the queue a Redis or a database of its own",
}
_REMEDIES["MOVED"] = _REMEDIES["ASK"]
_CLASSES = (
    ("LOADING", redis.exceptions.BusyLoadingError),
    ("READONLY", redis.ReadOnlyError),
    ("OOM", redis.OutOfMemoryError),
    ("NOPERM", redis.exceptions.NoPermissionError),
    ("TRYAGAIN", redis.exceptions.TryAgainError),
    ("MASTERDOWN", redis.exceptions.MasterDownError),
    ("CLUSTERDOWN", redis.exceptions.ClusterError),
    ("MOVED", redis.exceptions.MovedError),
    ("ASK", redis.exceptions.AskError),
)
"""Codes by class, a class before its own base: releases of redis-py before 7 have no status codes."""

_TEXTS = {
    "max number of clients": "MAXCLIENTS",
    "DB index is out of range": "DB",
}
"""Refusals without a code of their own."""
_INSIDE_A_SCRIPT = re.compile(r"Error running script .*?@user_script:\d+: (?:@user_script: \d+: -)?([A-Z]+) ")
"""Redis 6.2's."""

Waiting = Callable[[str], bool]
"""Told why Redis is waited for, before every pause, and "" once it answers again; False ends the waiting."""


def error_code(error: Exception) -> str:
    """The refusal's code, such as OOM; AWAY for a server that cannot be reached, "" where there is none."""
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return "AUTH"
    for code, kind in _CLASSES:
        if isinstance(error, kind):
            return code
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | RedisClusterException):
        return "CERTIFICATE" if _is_about_certificates(error) else "AWAY"
    text = str(error)
    for beginning, code in _TEXTS.items():
        if text.startswith(beginning):
            return code
    told = getattr(error, "status_code", None)
    if told not in (None, "ERR"):
        return str(told)
    if "Script killed by user" in text:
        return "KILLED"
    inner = _INSIDE_A_SCRIPT.match(text) or re.match(r"([A-Z]+) ", text)
    return inner[1] if inner else ""


def _is_about_certificates(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


class Outage:
    """One wait for Redis: pauses that double until the time is spent."""

    def __init__(self, address: RedisAddress, seconds: float, waiting: Waiting = lambda _: True) -> None:
        self._address = address
        self._seconds = seconds
        self._waiting = waiting
        self._since: float | None = None
        self._said = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    def pause_after(self, error: Exception) -> float:
        """Seconds to wait before the next try.

        Raises:
            QueueUnavailable: the time is spent, waiting cannot help, or whoever waits was told to stop.
            redis.ResponseError: the error itself when it says that a stream or its group is gone (NOGROUP).
        """
        code = error_code(error)
        if code == "NOGROUP":
            raise error
        follows = self._address.kind == "cluster" and code in REDIRECTIONS
        if code != "AWAY" and code not in TEMPORARY and not follows:
            remedy = f"; {_REMEDIES[code]}" if code in _REMEDIES else ""
            raise QueueUnavailable(f"Redis at {self._address} refuses us: {error}{remedy}") from error
        reason = f"{code}: {TEMPORARY.get(code, 'it moves our keys')}" if code != "AWAY" else str(error)
        now = time.monotonic()
        if self._since is None:
            self._since = now
        self._say(reason, now)
        if now + self._pause - self._since > self._seconds:
            raise QueueUnavailable(
                f"Redis at {self._address} did not serve us for {self._seconds:.0f} s ({reason}); is it running, and "
                "is queue.url right? Once it serves, --resume goes on; queue.outage_seconds is how long it is waited on"
            ) from error
        if not self._waiting(f"waits for Redis at {self._address}: {reason}"):
            raise QueueUnavailable(
                f"told to stop while Redis at {self._address} did not serve us ({reason})"
            ) from error
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return pause

    def over(self) -> None:
        """Redis answered."""
        if self._since is not None:
            log.info("Redis at %s serves us again after %.1f s", self._address, time.monotonic() - self._since)
            self._since, self._said, self._pause = None, 0.0, FIRST_PAUSE_SECONDS
            metrics.QUEUE_AWAY_SECONDS.set(0)
            self._waiting("")

    def _say(self, reason: str, now: float) -> None:
        assert self._since is not None
        metrics.QUEUE_AWAY_SECONDS.set(now - self._since)
        if not self._said or now - self._said > SAY_EVERY_SECONDS:
            self._said = now
            left = self._seconds - (now - self._since)
            log.warning("Redis at %s does not serve us (%s); waiting up to %.0f s more", self._address, reason, left)


class Patience:
    """How a process calls Redis: again and again while it is away and the time lasts."""

    def __init__(
        self,
        address: RedisAddress,
        seconds: float,
        waiting: Waiting = lambda _: True,
        reconnect: Callable[[], object] = lambda: None,
    ) -> None:
        """``reconnect`` gives up idle connections, so that the next one finds whoever is the master by then."""
        self._address = address
        self._seconds = seconds
        self._waiting = waiting
        self._reconnect = reconnect
        self._reads = Outage(address, seconds, waiting)

    def call(self, command: Callable[[], T], seconds: float | None = None) -> T:
        """The command's result, however often it takes; the errors are Outage.pause_after's."""
        outage = self._outage(seconds)
        while True:
            try:
                result = command()
            except ERRORS as error:
                pause = outage.pause_after(error)
                self._reconnect()
                time.sleep(pause)
            else:
                outage.over()
                return result

    def attempt(self, command: Callable[[], T], timeout_seconds: float) -> T | None:
        """The command's result, or None while Redis is away: the caller's loop is the one that tries again."""
        try:
            result = command()
        except ERRORS as error:
            pause = self._reads.pause_after(error)
            self._reconnect()
            time.sleep(max(0.0, min(pause, timeout_seconds)))
            return None
        self._reads.over()
        return result

    async def call_async(self, command: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        """As :meth:`call`, on an event loop."""
        outage = self._outage(seconds)
        while True:
            try:
                result = await command()
            except ERRORS as error:
                pause = outage.pause_after(error)
                await self._reconnect_async()
                await asyncio.sleep(pause)
            else:
                outage.over()
                return result

    async def attempt_async(self, command: Callable[[], Awaitable[T]], timeout_seconds: float) -> T | None:
        """As :meth:`attempt`, on an event loop."""
        try:
            result = await command()
        except ERRORS as error:
            pause = self._reads.pause_after(error)
            await self._reconnect_async()
            await asyncio.sleep(max(0.0, min(pause, timeout_seconds)))
            return None
        self._reads.over()
        return result

    def _outage(self, seconds: float | None) -> Outage:
        return Outage(self._address, self._seconds if seconds is None else min(seconds, self._seconds), self._waiting)

    async def _reconnect_async(self) -> None:
        given_up = self._reconnect()
        if isinstance(given_up, Awaitable):
            await given_up
