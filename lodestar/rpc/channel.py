"""Client channels: how every caller of a Lodestar service connects, retries, waits and hears errors."""
# ruff: noqa: ASYNC109 - a timeout here is the deadline of a call, which the server hears of

from __future__ import annotations

import ipaddress
import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestar.errors import ConfigError, DeadlineExceeded
from lodestar.rpc.status import error_from_rpc, said_by_server

Record = TypeVar("Record")

MAX_MESSAGE_BYTES = 64 * 2**20
"""What a client accepts; servers bound themselves below it (max_message_bytes)."""

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        # Its calls change models: what may have been done must not be done again.
        {"name": [{"service": "lodestar.v1.TrainingService"}]},
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # CANCELLED, when we did not cancel: the call reached a server as it began to drain.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
    ],
}
_SECOND = 1000  # milliseconds
_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 30 * _SECOND),  # servers allow one ping per 10 s (lodestar.rpc.server)
    ("grpc.keepalive_timeout_ms", 10 * _SECOND),
    ("grpc.keepalive_permit_without_calls", 1),
    # A service that was restarted is found again within seconds, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2 * _SECOND),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


def target(addresses: str | Sequence[str]) -> str:
    """One gRPC target for one or more addresses: ``["127.0.0.1:5001", "127.0.0.1:5002"]`` → ``ipv4:…,…``.

    Raises:
        ConfigError: no address, or several of which one is not ``IPv4:port``.
    """
    several = [addresses] if isinstance(addresses, str) else list(addresses)
    if not several:
        raise ConfigError("endpoints", "no address of the service is given")
    if len(several) == 1:
        return several[0]
    numeric = [address.replace("localhost:", "127.0.0.1:") for address in several]
    for address in numeric:
        try:
            ipaddress.IPv4Address(address.rpartition(":")[0])
        except ValueError:
            raise ConfigError(
                "endpoints",
                f"{address}: several addresses must each be IPv4:port; for names use one dns:/// target that "
                "resolves to all of them",
            ) from None
    return "ipv4:" + ",".join(numeric)


def sync_channel(addresses: str | Sequence[str], credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A blocking channel, calls spread round-robin over the addresses; plaintext without credentials."""
    if credentials is None:
        return grpc.insecure_channel(target(addresses), options=_OPTIONS)
    return grpc.secure_channel(target(addresses), credentials, options=(*_OPTIONS, *_verified_name(addresses)))


def aio_channel(addresses: str | Sequence[str], credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """:func:`sync_channel` for asyncio."""
    if credentials is None:
        return grpc.aio.insecure_channel(target(addresses), options=_OPTIONS)
    return grpc.aio.secure_channel(target(addresses), credentials, options=(*_OPTIONS, *_verified_name(addresses)))


def _verified_name(addresses: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    """gRPC verifies one name for all of a channel's servers; of several addresses it would take the whole list."""
    if isinstance(addresses, str) or len(addresses) == 1:
        return ()
    return (("grpc.ssl_target_name_override", addresses[0].rpartition(":")[0]),)


def serving(address: str, service: str = "", timeout: float = 1.0) -> bool:
    """Whether the server at the address is there and its health says SERVING, for a service or as a whole."""
    with grpc.insecure_channel(address) as probe:
        try:
            answer = health_pb2_grpc.HealthStub(probe).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def raising(timeout: float | None) -> Iterator[None]:
    """Turns gRPC's errors into LodestarError, with the server's sentence and the field it names."""
    try:
        yield
    except grpc.RpcError as error:
        ours = error_from_rpc(error)
        if timeout is not None and type(ours) is DeadlineExceeded and not said_by_server(error):
            ours = DeadlineExceeded(f"the server did not finish its answer within {timeout:g} s; allow more time")
        raise ours from None


def call(method: Any, request: Any, timeout: float) -> Any:
    """One blocking unary call; ``timeout`` in seconds is its deadline."""
    with raising(timeout):
        return method(request, timeout=timeout)


async def call_async(method: Any, request: Any, timeout: float) -> Any:
    """One unary call."""
    with raising(timeout):
        return await method(request, timeout=timeout)


def stream(
    method: Any, request: Any, timeout: float | None, parse: Callable[[Any], Record]
) -> Generator[Record, None, None]:
    """A server stream's messages, parsed; closing the generator cancels the call. No timeout for endless streams."""
    messages = method(request, timeout=timeout)
    try:
        with raising(timeout):
            for message in messages:
                yield parse(message)
    finally:
        messages.cancel()


async def stream_async(
    method: Any, request: Any, timeout: float | None, parse: Callable[[Any], Record]
) -> AsyncGenerator[Record, None]:
    """:func:`stream` for asyncio."""
    messages = method(request, timeout=timeout)
    try:
        with raising(timeout):
            async for message in messages:
                yield parse(message)
    finally:
        messages.cancel()
