"""One gRPC server process: bind, load, serve, drain.

    configure_logging("reward-0")
    return run(ServerSpec.of("reward", options, options.config.reward, [service], warm=load))

Consumes calls and SIGTERM; produces answers, health, metrics and a state file. A server binds first and loads its
model then (``warm``): health says NOT_SERVING and calls get UNAVAILABLE until that is done. On SIGTERM it says
NOT_SERVING, takes no new calls, lets those in flight finish within ``drain_seconds``, and returns.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

import grpc
import prometheus_client
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lodestar import metrics
from lodestar.config import ServeOptions
from lodestar.config.services import ServerConfig
from lodestar.errors import ConfigError
from lodestar.layout import RunFolder
from lodestar.rpc.interceptors import CallInterceptor
from lodestar.rpc.state import ServiceState

log = logging.getLogger(__name__)

_SECOND = 1000  # milliseconds
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server would share a taken port in silence
    ("grpc.keepalive_time_ms", 60 * _SECOND),
    ("grpc.keepalive_timeout_ms", 20 * _SECOND),
    ("grpc.http2.min_ping_interval_without_data_ms", 10 * _SECOND),  # clients ping every 30 s (lodestar.rpc.channel)
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients reconnect now and then, so that new replicas get their share of long-lived connections.
    ("grpc.max_connection_age_ms", 300 * _SECOND),
    ("grpc.max_connection_age_grace_ms", 600 * _SECOND),
)


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service: ``Service("lodestar.v1.RewardService", partial(add_RewardServiceServicer_to_server, it))``.

    Streaming methods of the servicer are async generators, unary ones coroutines.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]


class Health:
    """grpc.health.v1 by name; a name may also stand for less than a service (``…PolicyService/training``)."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it

    async def set(self, name: str, *, serving: bool) -> None:
        """What a probe of the name hears from now on. Ignored once the server drains."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set(name, status)


async def _nothing() -> None:
    """A service with nothing to load."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What to serve and where."""

    role: str
    services: Sequence[Service]
    """May be empty: a process without calls of its own still has health, metrics and a state file."""
    run_dir: Path
    warm: Callable[[], Awaitable[None]] = _nothing
    """Loads the model; health turns SERVING when it returns, and what it raises ends the process."""
    work: Callable[[asyncio.Event], Awaitable[None]] | None = None
    """Runs beside the server once it is warm; the server ends when it returns or raises. The event is set on
    SIGTERM; the work has ``drain_seconds`` to return before it is cancelled."""
    replica: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int = 0
    max_message_bytes: int = 16 * 2**20
    drain_seconds: float = 20.0
    insecure: bool = False
    credentials: grpc.ServerCredentials | None = None
    """TLS; required on addresses that other machines reach, unless ``insecure``."""
    reflection: bool | None = None
    """None: on loopback only."""
    health: Health = field(default_factory=Health)

    @classmethod
    def of(
        cls,
        role: str,
        options: ServeOptions,
        section: ServerConfig,
        services: Sequence[Service],
        *,
        warm: Callable[[], Awaitable[None]] = _nothing,
        work: Callable[[asyncio.Event], Awaitable[None]] | None = None,
        health: Health | None = None,
    ) -> ServerSpec:
        """The spec of one process as ``lodestar serve`` describes it."""
        return cls(
            role=role,
            services=services,
            run_dir=options.run_dir,
            warm=warm,
            work=work,
            replica=options.replica,
            host=options.host,
            port=options.port,
            metrics_port=options.metrics_port,
            max_message_bytes=section.max_message_bytes,
            drain_seconds=section.drain_seconds,
            insecure=options.insecure,
            reflection=options.reflection,
            health=health or Health(),
        )

    @property
    def name(self) -> str:
        """``policy-0``."""
        return f"{self.role}-{self.replica}"


def run(spec: ServerSpec) -> int:
    """Serves until SIGTERM, SIGINT or the end of ``spec.work``; the exit code.

    Raises:
        ConfigError: a port is taken, or the address needs TLS.
        LodestarError: what ``warm`` or ``work`` raised.
    """
    asyncio.run(serve(spec))
    return 0


def configure_logging(name: str) -> None:
    """Sends log records to stderr, one line per event (tracebacks follow theirs)."""
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("LODESTAR_LOG", "INFO"),
        format=f"%(asctime)s %(levelname)s {name} %(name)s: %(message)s",
        force=True,
    )


async def serve(spec: ServerSpec) -> None:
    """:func:`run` inside an event loop; signals are heard when that is the main thread's."""
    stopping = asyncio.Event()
    with _signals(stopping):
        server = Server(spec)
        await server.start()
        try:
            if await _or_stopping(spec.warm(), stopping):
                await server.become_ready()
                if spec.work is None:
                    await stopping.wait()
                else:
                    await _work(server, spec.work, stopping)
        finally:
            await server.stop()


class Server:
    """The parts of :func:`serve`, for a caller that has its own idea of when to stop (tests, notebooks)."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._ready = False
        self._drained_by: float | None = None
        self._state_file: Path | None = None
        self._exporter: tuple[WSGIServer, Thread] | None = None
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(lambda: self._ready)],
            options=[
                *_OPTIONS,
                ("grpc.max_receive_message_length", spec.max_message_bytes),
                ("grpc.max_send_message_length", spec.max_message_bytes),
            ],
        )

    async def start(self) -> ServiceState:
        """Binds both ports, answers health and reflection, and writes the state file."""
        spec = self.spec
        health_pb2_grpc.add_HealthServicer_to_server(spec.health.servicer, self._server)
        for service in spec.services:
            service.add(self._server)
        for name in ["", *(service.name for service in spec.services)]:
            await spec.health.set(name, serving=False)
        if spec.reflection if spec.reflection is not None else is_loopback(spec.host):
            names = [service.name for service in spec.services]
            health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], self._server)
        port = self._bind()
        self._exporter = _export_metrics(spec)
        await self._server.start()
        state = ServiceState(spec.name, os.getpid(), spec.host, port, self._exporter[0].server_port)
        self._state_file = state.write(RunFolder(spec.run_dir).services)
        log.info("listens on %s, metrics on port %d", state.address, state.metrics_port)
        return state

    async def become_ready(self) -> None:
        """Lets calls in: health turns SERVING."""
        self._ready = True
        for name in ["", *(service.name for service in self.spec.services)]:
            await self.spec.health.set(name, serving=True)
        metrics.READY.set(1)
        log.info("is ready")

    async def withdraw(self) -> float:
        """Says NOT_SERVING from now on; returns the seconds left of ``drain_seconds`` since the first time."""
        if self._drained_by is None:
            self._drained_by = time.monotonic() + self.spec.drain_seconds
            metrics.READY.set(0)
            await self.spec.health.servicer.enter_graceful_shutdown()
        return max(0.0, self._drained_by - time.monotonic())

    async def stop(self) -> None:
        """Drains: no new calls; those in flight have what is left of ``drain_seconds``."""
        await self._server.stop(await self.withdraw())
        if self._exporter is not None:
            httpd, thread = self._exporter
            await asyncio.to_thread(httpd.shutdown)
            httpd.server_close()
            thread.join()
        if self._state_file is not None:
            self._state_file.unlink(missing_ok=True)
        log.info("stopped")

    def _bind(self) -> int:
        spec = self.spec
        if not (is_loopback(spec.host) or spec.insecure or spec.credentials):
            raise ConfigError(
                "--host",
                f"{spec.host} is reachable from other machines, and this server has no TLS: "
                "bind 127.0.0.1, or say --insecure where the network itself is protected",
            )
        address = f"[{spec.host}]:{spec.port}" if ":" in spec.host else f"{spec.host}:{spec.port}"
        try:
            if spec.credentials is not None:
                return self._server.add_secure_port(address, spec.credentials)
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise _taken("--port", spec.host, spec.port) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; names other than localhost count as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _export_metrics(spec: ServerSpec) -> tuple[WSGIServer, Thread]:
    try:
        return prometheus_client.start_http_server(spec.metrics_port, addr=spec.host)
    except OSError as error:
        raise _taken("--metrics-port", spec.host, spec.metrics_port) from error


def _taken(flag: str, host: str, port: int) -> ConfigError:
    return ConfigError(
        flag,
        f"cannot listen on {host}:{port}: another process holds the port, or the address is not this machine's; "
        f"choose another, or {flag} 0 for a free one",
    )


async def _or_stopping(warming: Awaitable[None], stopping: asyncio.Event) -> bool:
    """Awaits; False when a signal came first (a model that loads on its thread is left to finish there)."""
    load = asyncio.ensure_future(warming)
    signalled = asyncio.ensure_future(stopping.wait())
    await asyncio.wait([load, signalled], return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if not load.done():
        load.cancel()
        return False
    load.result()
    return not stopping.is_set()


async def _work(server: Server, work: Callable[[asyncio.Event], Awaitable[None]], stopping: asyncio.Event) -> None:
    job = asyncio.ensure_future(work(stopping))
    signalled = asyncio.ensure_future(stopping.wait())
    await asyncio.wait([job, signalled], return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if not job.done():
        await asyncio.wait([job], timeout=await server.withdraw())
    if not job.done():
        log.warning("its work did not end within %.0f s of SIGTERM and is cancelled", server.spec.drain_seconds)
        job.cancel()
        await asyncio.wait([job])
    if not job.cancelled():
        job.result()


@contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event; a second one has its usual effect."""
    loop = asyncio.get_running_loop()
    heard = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopping.set()
        forget()

    def forget() -> None:
        for number in heard:
            loop.remove_signal_handler(number)

    try:
        for number in heard:
            loop.add_signal_handler(number, stop)
    except (RuntimeError, ValueError):  # not the main thread: whoever owns it stops us
        yield
        return
    try:
        yield
    finally:
        forget()
