"""One gRPC server process: bind, load, serve, drain.

    configure_logging("reward-0")
    return run(ServerSpec.of("reward", options, options.config.reward, [service], warm=load))

Consumes calls and SIGTERM; produces answers, health, metrics and a state file. A server binds first and loads its
model then (``warm``): health says NOT_SERVING and calls get UNAVAILABLE until that is done. On SIGTERM it says
NOT_SERVING, takes no new calls, lets those in flight finish within ``drain_seconds``, and returns.

Ports: the main one is plaintext on loopback, and mutual TLS elsewhere; the callers' one is TLS with tokens, since
a gRPC port can demand certificates of all its callers or of none; the health one answers probes, in plaintext.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lodestar import metrics
from lodestar.errors import ConfigError
from lodestar.rpc.access import Gate, Tokens
from lodestar.rpc.binding import bind, export_metrics, is_loopback
from lodestar.rpc.interceptors import CallInterceptor
from lodestar.rpc.spec import Condition, ServerSpec
from lodestar.rpc.state import ServiceState
from lodestar.rpc.tls import TlsFolder

log = logging.getLogger(__name__)

_SECOND = 1000  # milliseconds
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
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


def run(spec: ServerSpec) -> int:
    """Serves until SIGTERM, SIGINT or the end of ``spec.work``; the exit code.

    Raises:
        ConfigError: a port is taken, the address needs TLS, or TLS files or tokens cannot be used.
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
        self._probes: grpc.aio.Server | None = None
        self._telling: set[asyncio.Future[None]] = set()
        gate = Gate(None if spec.tokens is None else Tokens(spec.tokens))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(lambda: self._ready, gate)],
            options=[
                *_OPTIONS,
                ("grpc.max_receive_message_length", spec.max_message_bytes),
                ("grpc.max_send_message_length", spec.max_message_bytes),
            ],
        )

    async def start(self) -> ServiceState:
        """Binds the ports, answers health and reflection, and writes the state file."""
        spec = self.spec
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service in spec.services:
            service.add(self._server)
        await self._say(_NOT_SERVING)
        if spec.reflection if spec.reflection is not None else is_loopback(spec.host):
            names = [service.name for service in spec.services]
            health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.enable_server_reflection([*names, health_name, reflection.SERVICE_NAME], self._server)
        port = await self._bind_main()
        callers = self._bind_callers()
        probes = await self._serve_health()
        if spec.metrics_port is not None:
            self._exporter = export_metrics(spec.host, spec.metrics_port)
        await self._server.start()
        exported = self._exporter[0].server_port if self._exporter else None
        state = ServiceState(spec.name, os.getpid(), spec.host, port, exported, callers, probes, spec.http_port)
        self._state_file = state.write(spec.run_dir / "services")
        log.info(
            "listens on %s (%s); ports: callers %s, health %s, metrics %s",
            state.address,
            "plaintext" if spec.tls is None else "mutual TLS",
            *("none" if number is None else number for number in (callers, probes, exported)),
        )
        return state

    async def become_ready(self) -> None:
        """Lets calls in: health turns SERVING."""
        self._ready = True
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        for condition in self.spec.conditions:
            condition.on_change = partial(self._follow_condition, condition)
        metrics.READY.set(1)
        log.info("is ready")

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ["", *(service.name for service in self.spec.services)]:
            await self._health.set(name, status)
        for condition in self.spec.conditions:
            await self._health.set(condition.name, status if condition.holds else _NOT_SERVING)

    def _follow_condition(self, condition: Condition) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if condition.holds else _NOT_SERVING
        telling = asyncio.ensure_future(self._health.set(condition.name, status))  # after shutdown it stays as it is
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def withdraw(self) -> float:
        """Says NOT_SERVING from now on; returns the seconds left of ``drain_seconds`` since the first time."""
        if self._drained_by is None:
            self._drained_by = time.monotonic() + self.spec.drain_seconds
            metrics.READY.set(0)
            await self._health.enter_graceful_shutdown()
        return max(0.0, self._drained_by - time.monotonic())

    async def stop(self) -> None:
        """Drains: no new calls; those in flight have what is left of ``drain_seconds``."""
        await self._server.stop(await self.withdraw())
        if self._probes is not None:
            await self._probes.stop(None)
        if self._exporter is not None:
            httpd, thread = self._exporter
            await asyncio.to_thread(httpd.shutdown)
            httpd.server_close()
            thread.join()
        if self._state_file is not None:
            self._state_file.unlink(missing_ok=True)
        log.info("stopped")

    async def _bind_main(self) -> int:
        spec = self.spec
        credentials = None
        if spec.tls is not None:
            credentials = TlsFolder(spec.tls).server_credentials(require_certificate=True)
        elif not (is_loopback(spec.host) or spec.insecure):
            raise ConfigError(
                "--host",
                f"{spec.host} is reachable from other machines, and this server has no TLS: give --tls, "
                "bind 127.0.0.1, or say --insecure where the network itself is protected",
            )
        deadline = time.monotonic() + spec.bind_seconds
        while True:
            try:
                return bind(self._server, "--port", spec.host, spec.port, credentials)
            except ConfigError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.1)

    def _bind_callers(self) -> int | None:
        spec = self.spec
        if spec.caller_port is None:
            return None
        if spec.tls is None or spec.tokens is None:
            raise ConfigError("--caller-port", "outside callers send tokens over TLS: give --tls and --tokens too")
        credentials = TlsFolder(spec.tls).server_credentials(require_certificate=False)
        return bind(self._server, "--caller-port", spec.host, spec.caller_port, credentials)

    async def _serve_health(self) -> int | None:
        spec = self.spec
        if spec.health_port is None:
            return None
        self._probes = grpc.aio.server(options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
        port = bind(self._probes, "--health-port", spec.host, spec.health_port, None)
        await self._probes.start()
        return port


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
