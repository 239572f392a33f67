"""redis-py's clients for what a URL names: a server, a socket, the master that Sentinels know, or a Cluster.

They are told to try nothing again by themselves: that is lodestar.queue.outage's part. All speak RESP2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.backoff import NoBackoff

from lodestar.errors import ConfigError
from lodestar.queue.address import RedisAddress
from lodestar.rpc.certificates import AUTHORITY, CERTIFICATE, KEY
from lodestar.rpc.tls import TlsFolder

SOCKET_SECONDS = 10.0
"""A reply slower than this counts as a lost connection; blocking reads stay well below."""
BLOCK_SECONDS = 1.0
"""Longest blocking read; also how often, at least, a worker looks for abandoned claims and a new incarnation."""
WORKER_CONNECTIONS = 16
"""Commands that one worker has under way at once, each on a connection; its calls queue for them."""
REDIRECTIONS = 5
"""How often a Cluster's client follows keys that moved, within one command."""


class _FollowingConnection(redis.asyncio.SSLConnection):
    """Reads its TLS files for every connection, as the blocking one does: they may have been renewed."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        self.ssl_context.context = None
        return super()._connection_arguments()


class _FollowingSentinelConnection(redis.asyncio.sentinel.SentinelManagedConnection, _FollowingConnection):
    """The same for the master that Sentinels name."""


def connect(address: RedisAddress, tls: Path | None = None) -> Any:
    """A blocking client. That of a Cluster asks its nodes at once, the others connect on first use.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    options = _options(address, tls)
    retry = redis.retry.Retry(NoBackoff(), 0)
    match address.kind:
        case "server":
            ((host, port),) = address.hosts
            return redis.Redis(host, port, db=address.database, retry=retry, ssl=address.tls, **options)
        case "socket":
            return redis.Redis(unix_socket_path=address.path, db=address.database, retry=retry, **options)
        case "sentinel":
            sentinel = redis.sentinel.Sentinel(address.hosts, sentinel_kwargs=_sentinel_options(address, options))
            return sentinel.master_for(address.service, db=address.database, retry=retry, ssl=address.tls, **options)
        case "cluster":
            nodes = [redis.cluster.ClusterNode(*host) for host in address.hosts]
            follow = redis.retry.Retry(NoBackoff(), REDIRECTIONS)
            return redis.cluster.RedisCluster(startup_nodes=nodes, retry=follow, ssl=address.tls, **options)


def connect_async(address: RedisAddress, tls: Path | None = None) -> Any:
    """An asyncio client, which connects on first use; otherwise as :func:`connect`."""
    options = _options(address, tls)
    retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
    match address.kind:
        case "server":
            ((host, port),) = address.hosts
            kind = _FollowingConnection if address.tls else redis.asyncio.Connection
            options |= {"connection_class": kind, "host": host, "port": port, "db": address.database}
            return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(retry=retry, **options))
        case "socket":
            return redis.asyncio.Redis(unix_socket_path=address.path, db=address.database, retry=retry, **options)
        case "sentinel":
            told = _sentinel_options(address, options)
            sentinel = redis.asyncio.sentinel.Sentinel(address.hosts, sentinel_kwargs=told)
            if address.tls:
                options["connection_class"] = _FollowingSentinelConnection
            return sentinel.master_for(address.service, db=address.database, retry=retry, **options)
        case "cluster":
            nodes = [redis.asyncio.cluster.ClusterNode(*host) for host in address.hosts]
            follow = redis.asyncio.retry.Retry(NoBackoff(), REDIRECTIONS)
            return redis.asyncio.RedisCluster(startup_nodes=nodes, retry=follow, ssl=address.tls, **options)


def run_script(client: Any, script: tuple[str, str], keys: Sequence[str], words: Sequence[Any]) -> Any:
    """EVALSHA, and EVAL where the server does not know the script (yet, or any more). ``script`` is text and SHA-1."""
    text, sha = script
    try:
        return client.evalsha(sha, len(keys), *keys, *words)
    except redis.exceptions.NoScriptError:
        return client.eval(text, len(keys), *keys, *words)


async def run_script_async(client: Any, script: tuple[str, str], keys: Sequence[str], words: Sequence[Any]) -> Any:
    """As :func:`run_script`."""
    text, sha = script
    try:
        return await client.evalsha(sha, len(keys), *keys, *words)
    except redis.exceptions.NoScriptError:
        return await client.eval(text, len(keys), *keys, *words)


def give_up_idle(client: Any) -> Any:
    """Ends the connections that no command uses; the asyncio client's coroutine is returned. Clusters look after
    theirs themselves."""
    pool = getattr(client, "connection_pool", None)
    return pool.disconnect(inuse_connections=False) if pool is not None else None


def close(client: Any) -> None:
    """Ends a client's connections, those to Sentinels too."""
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


async def close_async(client: Any) -> None:
    """As :func:`close`."""
    await client.aclose()
    if (pool := getattr(client, "connection_pool", None)) is not None:
        await pool.disconnect()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def _sentinels(client: Any) -> Sequence[Any]:
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return manager.sentinels if manager is not None else ()


def milliseconds(seconds: float) -> int | None:
    """BLOCK's argument; None does not block, where 0 would block for ever."""
    return round(1000 * seconds) or None


def _options(address: RedisAddress, tls: Path | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": SOCKET_SECONDS,
    }
    if address.kind != "socket":
        options |= {"socket_connect_timeout": 3.0, "socket_keepalive": True}
    if address.username:
        options["username"] = address.username
    if address.password:
        options["password"] = address.password
    return options | _tls_options(address, tls)


def _sentinel_options(address: RedisAddress, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the connections to the Sentinels themselves, which have no password of their own here."""
    told = {name: value for name, value in options.items() if name not in ("username", "password")}
    return {**told, "socket_timeout": 3.0, "ssl": address.tls}


def _tls_options(address: RedisAddress, tls: Path | None) -> dict[str, Any]:
    """Our authority and, where there is one, our certificate; what the URL says goes over them.

    Raises:
        ConfigError: the folder is missing something.
    """
    if not address.tls:
        if any(name.startswith("ssl") for name, _ in address.options):
            raise ConfigError("queue.url", f"{address}: has ssl options and no TLS; rediss:// is the scheme with TLS")
        return {}
    options: dict[str, Any] = {}
    if tls is not None:
        TlsFolder(tls)  # says what is wrong with the files; OpenSSL would not
        options |= {"ssl_ca_certs": str(tls / AUTHORITY)}
        if (tls / CERTIFICATE).exists():
            options |= {"ssl_certfile": str(tls / CERTIFICATE), "ssl_keyfile": str(tls / KEY)}
    told: dict[str, Any] = dict(address.options)
    if told.get("ssl_cert_reqs", "required") != "required":
        told.setdefault("ssl_check_hostname", "false")
    if "ssl_check_hostname" in told:
        told["ssl_check_hostname"] = told["ssl_check_hostname"] == "true"
    return options | told
