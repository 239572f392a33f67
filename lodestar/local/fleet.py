"""The run's services as processes of this machine: started, watched, restarted, stopped."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestar.config import Endpoints, RunConfig, ServeOptions
from lodestar.errors import LodestarError, Terminated
from lodestar.layout import RunFolder
from lodestar.local.board import Board, ServiceRow
from lodestar.local.ports import free_ports
from lodestar.local.processes import OWN_ERRORS, Child, Processes
from lodestar.local.telemetry import Counters, scrape

Role = Literal["policy", "reward", "reference", "learner", "rollout"]
RPCS = ("lodestar_rpcs_total", "lodestar_rollout_calls_total")
"""Calls answered; a worker answers none and counts those it made."""
TOKENS = tuple(f"lodestar_{name}_total" for name in ("tokens_in", "tokens_out", "tokens_trained", "rollout_tokens"))
"""Each service counts what passed through it."""
READY_SECONDS = 120.0
MAX_RESTARTS = 5
HEALTHY_SECONDS = 60.0
"""A service that lived this long has its restarts forgiven."""
FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 10.0
STOP_ORDER: tuple[tuple[Role, ...], ...] = (("rollout", "learner"), ("policy", "reward", "reference"))
"""Callers first, so that servers have nothing left to drain."""
NICENESS: dict[Role, int] = {"reward": 19, "reference": 19}
"""Scoring leaves the cores to generation, each of whose steps would wait for a thread that was put aside; what arrives
meanwhile is scored in one larger batch (docs/log.md)."""


@dataclass(slots=True)
class Service:
    """One supervised process and its successors."""

    role: Role
    replica: int
    options: ServeOptions
    row: ServiceRow
    counters: Counters
    """Of all its processes."""
    child: Child
    born: float
    failures: int = 0
    """Deaths in a row."""
    restart_at: float | None = None

    @property
    def name(self) -> str:
        """``policy-0``."""
        return f"{self.role}-{self.replica}"


class Fleet:
    """The processes of one run. The launcher's main thread calls it; :meth:`check` is its heartbeat."""

    def __init__(
        self,
        processes: Processes,
        config: RunConfig,
        folder: RunFolder,
        board: Board,
        redis: str,
        on_restart: Callable[[str], None],
    ) -> None:
        """``on_restart`` hears the name of every service that is started again after a death."""
        self._processes = processes
        self._on_restart = on_restart
        self._config = config
        self._folder = folder
        self._board = board
        self.services: list[Service] = []
        self._counters: dict[str, Counters] = {}
        replicas: dict[Role, int] = {
            "policy": config.policy.replicas,
            "reward": config.reward.replicas,
            "reference": config.reference.replicas,
            "learner": 1,
            "rollout": config.rollout.replicas,
        }
        ports = iter(free_ports(2 * sum(replicas.values()) + 1))
        self._weights_port = next(ports)
        self._ports = {
            (role, replica): (next(ports), next(ports)) for role, count in replicas.items() for replica in range(count)
        }
        self.endpoints = Endpoints(
            redis=redis,
            policy=self.addresses("policy"),
            reward=self.addresses("reward"),
            reference=self.addresses("reference"),
            weights=f"127.0.0.1:{self._weights_port}",
        )

    def addresses(self, role: Role) -> tuple[str, ...]:
        """gRPC targets of a role's processes."""
        return tuple(f"127.0.0.1:{port}" for (name, _), (port, _) in self._ports.items() if name == role)

    def start(self, role: Role, *, model: str | None = None, resume: bool = False, follows: bool = True) -> None:
        """Starts a role's processes; :meth:`wait_ready` waits for them.

        A policy server that does not follow the learner serves ``model`` and nothing else.
        """
        endpoints = self.endpoints if follows else self.endpoints.model_copy(update={"weights": None})
        for (name, replica), (port, metrics_port) in self._ports.items():
            if name != role:
                continue
            options = ServeOptions(
                config=self._config,
                run_dir=self._folder.root,
                port=port,
                metrics_port=metrics_port,
                weights_port=self._weights_port if role == "learner" else 0,
                replica=replica,
                model=model,
                resume=resume,
                endpoints=endpoints,
            )
            row = self._board.service(f"{role}-{replica}", port)
            row.state = "starting"
            counters = self._counters.setdefault(row.name, Counters())
            child = self._fork(row, role, options)
            self.services.append(Service(role, replica, options, row, counters, child, time.monotonic()))

    def wait_ready(self, roles: Sequence[Role], timeout: float = READY_SECONDS) -> None:
        """Waits until health says SERVING for every process of the roles.

        Raises:
            LodestarError: one ended for good or stayed silent; the message holds its log's tail.
        """
        deadline = time.monotonic() + timeout
        while waiting := [s for s in self.services if s.role in roles and s.row.state != "ready"]:
            self.check()
            if time.monotonic() > deadline:
                service = waiting[0]
                raise LodestarError(
                    f"{service.name} is not ready after {timeout:.0f} s; the end of {service.child.log}:\n"
                    + service.child.tail(15)
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Notices what became ready and what died; restarts the dead when their time has come.

        Raises:
            LodestarError: a service ended for a reason of its own, or died more often than MAX_RESTARTS.
        """
        for service in self.services:
            if service.restart_at is not None:
                if time.monotonic() >= service.restart_at:
                    self._restart(service)
            elif not service.child.alive:
                if not (service.role == "learner" and service.child.exit_code == 0):
                    self._bury(service)
                service.row.state = "restarting" if service.restart_at else "stopped"
            elif service.row.state in ("starting", "restarting") and self._serving(service):
                service.row.state = "ready"

    def learner_finished(self) -> bool:
        """Whether the learner ended well."""
        return any(s.role == "learner" and s.child.exit_code == 0 for s in self.services)

    def weight_steps(self, role: Role) -> set[int | None]:
        """The weight steps that a role's processes serve, as they say now; None for one that does not answer."""
        self.scrape()
        return {s.row.weight_step if s.row.state == "ready" else None for s in self.services if s.role == role}

    def scrape(self) -> None:
        """Brings the board's figures up to date from the services' own metrics."""
        for service in list(self.services):
            samples = scrape(service.options.metrics_port) if service.row.state == "ready" else None
            if samples is None:
                continue
            service.counters.update(samples)
            row = service.row
            row.rpcs = service.counters.total(*RPCS)
            row.tokens = service.counters.total(*TOKENS)
            if service.role in ("policy", "learner"):
                step = service.counters.present("lodestar_weight_step")
                row.weight_step = None if step is None else int(step)
            if service.role == "learner":
                waiting, taken = (service.counters.present(f"lodestar_queue_{n}") for n in ("waiting", "taken"))
                self._board.queue_waiting = None if waiting is None else int(waiting)
                self._board.queue_taken = None if taken is None else int(taken)

    def stop(
        self,
        roles: Iterable[Role] | None = None,
        grace_seconds: float = 8.0,
        hurry: threading.Event | None = None,
    ) -> None:
        """Stops the roles' processes (all without roles), callers before servers; none is left when it returns.

        Each group has the grace time to end by itself; none once ``hurry`` is set.
        """
        chosen = set(roles) if roles is not None else {s.role for s in self.services}
        for group in STOP_ORDER:
            group_services = [s for s in self.services if s.role in group and s.role in chosen]
            for service in group_services:
                service.restart_at = None
                service.child.terminate()
            deadline = time.monotonic() + grace_seconds
            while any(s.child.alive for s in group_services) and time.monotonic() < deadline:
                if hurry is not None and hurry.is_set():
                    break
                time.sleep(0.02)
            for service in group_services:
                service.child.kill()
                service.child.wait(5)
                service.counters.restarted()
                service.row.state = "stopped"
        self.services = [s for s in self.services if s.role not in chosen]

    def _fork(self, row: ServiceRow, role: Role, options: ServeOptions) -> Child:
        child = self._processes.start(
            row.name,
            "lodestar.local.jobs:serve",
            {"role": role, "options": options.model_dump(mode="json")},
            nice=NICENESS.get(role, 0),
        )
        row.pid = child.pid
        return child

    def _bury(self, service: Service) -> None:
        """Decides about a dead service: an error of its own ends the run, anything else is a restart."""
        child = service.child
        code = child.exit_code
        assert code is not None
        if code in OWN_ERRORS or (service.role == "learner" and code > 0 and code != Terminated.exit_code):
            raise child.error()
        service.counters.restarted()
        service.failures = 0 if time.monotonic() - service.born > HEALTHY_SECONDS else service.failures
        service.failures += 1
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code} ({child.last_error()})"
        if service.failures > MAX_RESTARTS:
            raise LodestarError(f"{service.name} {how}, {service.failures} times in a row; see {child.log}")
        backoff = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (service.failures - 1))
        service.restart_at = time.monotonic() + backoff
        self._board.say(f"{service.name} {how}; restarting it in {backoff:.2g} s", "warning")

    def _restart(self, service: Service) -> None:
        service.restart_at = None
        service.row.restarts += 1
        self._on_restart(service.name)
        if service.role == "learner":
            service.options = service.options.model_copy(update={"resume": True})
        service.child = self._fork(service.row, service.role, service.options)
        service.born = time.monotonic()

    def _serving(self, service: Service) -> bool:
        """Whether the present process (not a predecessor) has bound its port and says SERVING."""
        state = self._folder.services / f"{service.name}.json"
        if not state.exists() or json.loads(state.read_text(encoding="utf-8"))["pid"] != service.child.pid:
            return False
        with grpc.insecure_channel(f"127.0.0.1:{service.row.port}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
