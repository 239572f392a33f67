"""Whether the Redis that a configuration names can hold a run's queue: asked before the first stage, not after it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from lodestar.errors import QueueUnavailable
from lodestar.queue.address import RedisAddress
from lodestar.queue.connection import close, connect, run_script
from lodestar.queue.outage import Patience, Waiting
from lodestar.queue.schema import RunKeys

log = logging.getLogger(__name__)

OLDEST = (6, 2)
REACH_SECONDS = 20.0
_ASK = """
-- KEYS any key of the run
redis.call('EXISTS', KEYS[1])
return redis.call('INFO')
"""


def reach(
    url: str,
    run: str,
    *,
    password: str = "",
    tls: Path | None = None,
    seconds: float = REACH_SECONDS,
    waiting: Waiting = lambda _: True,
) -> str:
    """The server's name and version, once it answered as the run's user on the run's keys; nothing is written.

    Warns of a memory policy by which Redis would throw the run's keys away.

    Raises:
        ConfigError: the URL cannot be one of Redis, or the TLS files cannot be used.
        QueueUnavailable: it does not answer within ``seconds``, refuses us, is a replica, or is older than 6.2.
    """
    address = RedisAddress.parse(url).with_password(password)
    client = None

    def ask() -> str:
        nonlocal client
        client = client or connect(address, tls)
        reply: bytes = run_script(client, (_ASK, "0" * 40), [RunKeys(run).pointer], [])
        return reply.decode(errors="replace")

    try:
        said = dict(re.findall(r"^(\w+):(.*?)\r?$", Patience(address, seconds, waiting).call(ask), re.MULTILINE))
    finally:
        if client is not None:
            close(client)
    name, version = ("Valkey", said["valkey_version"]) if "valkey_version" in said else ("Redis", said["redis_version"])
    if tuple(map(int, said["redis_version"].split(".")[:2])) < OLDEST:
        raise QueueUnavailable(f"{name} at {address} is version {version}; the queue needs 6.2 or newer")
    if said.get("role", "master") != "master":
        raise QueueUnavailable(f"{name} at {address} is a replica; name its master in queue.url, or the Sentinels")
    if (policy := said.get("maxmemory_policy", "noeviction")) != "noeviction":
        log.warning("%s at %s has maxmemory-policy %s: set noeviction, or tickets disappear", name, address, policy)
    return f"{name} {version}"
