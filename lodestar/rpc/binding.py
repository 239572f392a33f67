"""How a server's ports are bound, and what is said when one cannot be."""

from __future__ import annotations

import ipaddress
from threading import Thread
from wsgiref.simple_server import WSGIServer

import grpc
import prometheus_client

from lodestar.errors import ConfigError


def bind(server: grpc.aio.Server, flag: str, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Adds a port to a server, plaintext without credentials; the port's number.

    Raises:
        ConfigError: the port cannot be had; ``flag`` is named.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise _taken(flag, host, port) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def export_metrics(host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Serves this process's Prometheus metrics; raises ConfigError as :func:`bind`."""
    try:
        return prometheus_client.start_http_server(port, addr=host)
    except OSError as error:
        raise _taken("--metrics-port", host, port) from error


def _taken(flag: str, host: str, port: int) -> ConfigError:
    return ConfigError(
        flag,
        f"cannot listen on {host}:{port}: another process holds the port, or the address is not this machine's; "
        f"choose another, or {flag} 0 for a free one",
    )
