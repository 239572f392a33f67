"""What one server process serves, where, and for how long: the description that lodestar.rpc.server acts on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from lodestar.config import Task
from lodestar.config.serve import Listening
from lodestar.config.services import ServerConfig


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service: ``Service("lodestar.v1.RewardService", partial(add_RewardServiceServicer_to_server, it))``.

    Streaming methods of the servicer are async generators, unary ones coroutines.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]


class Condition:
    """A health name of its own beside the services': ``condition.set(False)`` says NOT_SERVING, and calls go on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holds = True
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change, on the event loop."""

    def set(self, holds: bool) -> None:
        """From the server's event loop."""
        if holds != self.holds:
            self.holds = holds
            self.on_change()


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
    conditions: Sequence[Condition] = ()
    replica: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = 0
    """None exports no metrics."""
    caller_port: int | None = None
    health_port: int | None = None
    http_port: int | None = None
    """Of an HTTP server that ``work`` runs: for the state file."""
    max_message_bytes: int = 16 * 2**20
    drain_seconds: float = 20.0
    tls: Path | None = None
    """See Listening.tls; required on addresses that other machines reach, unless ``insecure``."""
    tokens: Path | None = None
    insecure: bool = False
    bind_seconds: float = 0.0
    """How long to wait for a predecessor that is about to free the port."""
    reflection: bool | None = None
    """None: on loopback only."""

    @classmethod
    def of(
        cls,
        task: Task,
        section: ServerConfig | None,
        services: Sequence[Service],
        *,
        warm: Callable[[], Awaitable[None]] = _nothing,
        work: Callable[[asyncio.Event], Awaitable[None]] | None = None,
        role: str = "",
        conditions: Sequence[Condition] = (),
    ) -> ServerSpec:
        """The spec of one process by its task; no section for one that answers no calls."""
        section = section or ServerConfig()
        made = cls.of_listening(
            role or task.name, task.folder, task.listening, services, drain_seconds=section.drain_seconds
        )
        return replace(made, warm=warm, work=work, conditions=conditions, max_message_bytes=section.max_message_bytes)

    @classmethod
    def of_listening(
        cls, role: str, folder: Path, options: Listening, services: Sequence[Service], *, drain_seconds: float
    ) -> ServerSpec:
        """The spec of a process that has no task."""
        return cls(
            role=role,
            services=services,
            run_dir=folder,
            replica=options.replica,
            host=options.host,
            port=options.port,
            metrics_port=options.metrics_port,
            caller_port=options.caller_port,
            health_port=options.health_port,
            drain_seconds=drain_seconds,
            tls=options.tls,
            tokens=options.tokens,
            insecure=options.insecure,
            reflection=options.reflection,
        )

    @property
    def name(self) -> str:
        """``policy-0``."""
        return f"{self.role}-{self.replica}"
