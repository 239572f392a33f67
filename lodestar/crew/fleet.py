"""Processes of this machine that a run needs: started, watched, restarted after a death, stopped."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestar.config.serve import Task
from lodestar.crew.hangs import HangWatch
from lodestar.errors import DataError, Hung, LodestarError, Terminated
from lodestar.files import read_json
from lodestar.local.board import Board, ServiceRow
from lodestar.local.processes import OWN_ERRORS, Child, Processes
from lodestar.local.telemetry import Counters, scrape

RPCS = ("lodestar_rpcs_total", "lodestar_rollout_calls_total")
"""Calls answered; a worker answers none and counts those it made."""
TOKENS = tuple(f"lodestar_{name}_total" for name in ("tokens_in", "tokens_out", "tokens_trained", "rollout_tokens"))
"""Each service counts what passed through it."""
READY_SECONDS = 120.0
MAX_RESTARTS = 5
GRACE_SECONDS = 8.0
"""That processes have to end by themselves."""
HEALTHY_SECONDS = 60.0
"""A process that lived this long has its restarts forgiven."""
FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 10.0
NICENESS = {"reward": 19, "reference": 19}
"""Scoring leaves the cores to generation, each of whose steps would wait for a thread that was put aside; what arrives
meanwhile is scored in one larger batch (docs/log.md). To other programs nobody is polite (lodestar.manners)."""


@dataclass(slots=True)
class Member:
    """One supervised process and its successors: ``policy-0``, ``rollout-1``, or a stage's own."""

    name: str
    fleet: str
    """Members of one fleet are alike; a stage's own process is a fleet of one."""
    role: str
    target: str
    """``module:function`` that the process runs."""
    argument: dict[str, Any]
    child: Child
    row: ServiceRow | None
    """Of the board; None for a process that serves nothing."""
    metrics_port: int
    ends: bool
    """Whether its work has an end: exit code 0 is then no death."""
    born: float
    failures: int = 0
    """Deaths in a row."""
    hung: str = ""
    """How it came that it was killed for hanging; empty for any other death."""
    silent: float = 0.0
    """Seconds that it hung before that."""
    restart_at: float | None = None

    @property
    def finished(self) -> bool:
        """Whether it ended well."""
        return self.ends and self.child.exit_code == 0


class Fleet:
    """The processes of one run. The conductor's thread calls it; :meth:`check` is its heartbeat."""

    def __init__(
        self, processes: Callable[[], Processes], board: Board, states: Path, hang_seconds: float = 60.0
    ) -> None:
        """
        Args:
            processes: gives the fork server, which is started when it is first needed.
            states: folder of the files by which servers say where they listen.
            hang_seconds: services.hang_seconds.
        """
        self._processes = processes
        self._board = board
        self._states = states
        self.hangs = HangWatch(board, hang_seconds)
        self.members: list[Member] = []
        self.counters: dict[str, Counters] = {}
        """By member, over its restarts and the stages that it served."""
        self.restarts: dict[str, int] = {}

    def serve(self, task: Task, *, ends: bool = False) -> Member:
        """Starts the process of a task; :meth:`wait_ready` waits for it."""
        argument = {"task": task.model_dump(mode="json")}
        return self.start(
            f"{task.name}-{task.listening.replica}",
            "lodestar.crew.work:serve",
            argument,
            fleet=task.name,
            role=str(getattr(task, "role", "")),
            ports=(task.listening.port, task.listening.metrics_port),
            ends=ends,
        )

    def start(
        self,
        name: str,
        target: str,
        argument: dict[str, Any],
        *,
        fleet: str = "",
        role: str = "",
        ports: tuple[int, int] | None = None,
        ends: bool = False,
    ) -> Member:
        """Starts a process; with ``ports`` (gRPC, metrics) it has a row on the board."""
        row = None
        if ports is not None:
            row = self._board.service(name, ports[0])
            row.state = "starting"
            self.counters.setdefault(name, Counters())
        child = self._fork(name, role, target, argument, row)
        metrics_port = ports[1] if ports else 0
        member = Member(name, fleet or name, role, target, argument, child, row, metrics_port, ends, time.monotonic())
        self.members.append(member)
        return member

    def fleet(self, name: str) -> list[Member]:
        """The members of a fleet."""
        return [member for member in self.members if member.fleet == name]

    def wait_ready(self, fleets: Sequence[str], timeout: float = READY_SECONDS) -> None:
        """Waits until health says SERVING for every process of the fleets; each has ``timeout`` since its last start.

        Raises:
            LodestarError: one ended for good or stayed silent; the message holds its log's tail.
        """
        while waiting := [m for m in self.members if m.fleet in fleets and m.row and m.row.state != "ready"]:
            self.check()
            if late := [m for m in waiting if time.monotonic() - m.born > timeout and m.restart_at is None]:
                child = late[0].child
                raise LodestarError(
                    f"{child.name} is not ready after {timeout:.0f} s; the end of {child.log}:\n{child.tail(15)}"
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Notices what became ready, what hangs and what died; restarts the dead when their time has come.

        Raises:
            LodestarError: a process ended for a reason of its own, or died more often than MAX_RESTARTS.
        """
        for member in self.members:
            row = member.row
            if member.child.alive and member.restart_at is None:
                counters = self.counters.get(member.name)
                self.hangs.judge(member, (counters and counters.present("lodestar_asleep_seconds")) or 0.0)
            if member.restart_at is not None:
                if time.monotonic() >= member.restart_at:
                    self._restart(member)
            elif not member.child.alive:
                if not member.finished:
                    self._bury(member)
                if row:
                    row.state = "restarting" if member.restart_at else "stopped"
            elif row and row.state in ("starting", "restarting") and self._serving(member):
                row.state = "ready"

    def look(self) -> None:
        """Looks for hangs; to be called about once a second, on any one thread."""
        self.hangs.look(list(self.members), self._bound)

    def scrape(self) -> None:
        """Brings the board's figures up to date from the services' own metrics."""
        for member in list(self.members):
            row = member.row
            speaks = row is not None and row.state in ("ready", "hanging") and not self.hangs.silent(member.name)
            samples = scrape(member.metrics_port) if speaks else None
            if row is None or samples is None:
                continue
            counters = self.counters[member.name]
            counters.update(samples)
            row.rpcs, row.tokens = counters.total(*RPCS), counters.total(*TOKENS)
            if member.role in ("policy", "learner"):
                step = counters.present("lodestar_weight_step")
                row.weight_step = None if step is None else int(step)
            for name in ("waiting", "taken"):
                if (depth := counters.present(f"lodestar_queue_{name}")) is not None and member.ends:
                    setattr(self._board, f"queue_{name}", int(depth))

    def stop(
        self, fleets: Iterable[str], grace_seconds: float = GRACE_SECONDS, hurry: threading.Event | None = None
    ) -> None:
        """Stops fleets together; none of their processes is left when it returns.

        They have the grace time to end by themselves; none once ``hurry`` is set.
        """
        chosen = set(fleets)
        leaving = [member for member in self.members if member.fleet in chosen]
        self.hangs.forget([member.name for member in leaving])
        for member in leaving:
            member.restart_at = None
            member.child.terminate()
        deadline = time.monotonic() + grace_seconds
        while any(member.child.alive for member in leaving) and time.monotonic() < deadline:
            if hurry is not None and hurry.is_set():
                break
            time.sleep(0.02)
        for member in leaving:
            member.child.kill()
            member.child.wait(5)
            if member.row:
                self.counters[member.name].restarted()
                member.row.state = "stopped"
        self.members = [member for member in self.members if member.fleet not in chosen]

    def _fork(self, name: str, role: str, target: str, argument: dict[str, Any], row: ServiceRow | None) -> Child:
        child = self._processes().start(name, target, argument, nice=NICENESS.get(role, 0))
        if row:
            row.pid = child.pid
        return child

    def _bury(self, member: Member) -> None:
        """Decides about a dead process: an error of its own ends the run, anything else is a restart."""
        child, code = member.child, member.child.exit_code
        assert code is not None
        if code in OWN_ERRORS or (member.ends and code > 0 and code not in (Terminated.exit_code, Hung.exit_code)):
            raise child.error()
        if member.row:
            self.counters[member.name].restarted()
        lived = time.monotonic() - member.born - member.silent
        member.failures = 0 if lived > HEALTHY_SECONDS else member.failures
        member.failures += 1
        how = (
            member.hung or f"was killed by signal {-code}"
            if code < 0
            else f"ended with exit code {code} ({child.last_error()})"
        )
        member.hung, member.silent = "", 0.0
        if member.failures > MAX_RESTARTS:
            raise LodestarError(f"{member.name} {how}, {member.failures} times in a row; see {child.log}")
        backoff = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (member.failures - 1))
        member.restart_at = time.monotonic() + backoff
        self._board.say(f"{member.name} {how}; restarting it in {backoff:.2g} s", "warning")

    def _restart(self, member: Member) -> None:
        member.restart_at = None
        self.restarts[member.name] = self.restarts.get(member.name, 0) + 1
        if member.row:
            member.row.restarts += 1
        member.child = self._fork(member.name, member.role, member.target, member.argument, member.row)
        member.born = time.monotonic()

    def _serving(self, member: Member) -> bool:
        """Whether the present process (not a predecessor) has bound its port and says SERVING."""
        assert member.row is not None
        return self._bound(member) and serving(f"127.0.0.1:{member.row.port}")

    def _bound(self, member: Member) -> bool:
        """Whether the present process has bound its port."""
        state = self._states / f"{member.name}.json"
        with contextlib.suppress(DataError):  # not bound yet, or leaving
            return bool(read_json(state)["pid"] == member.child.pid)
        return False


def serving(address: str, timeout: float = 1.0) -> bool:
    """Whether a server's health says SERVING."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def figures_of(board: Board, fleet: Fleet) -> list[dict[str, Any]]:
    """What a stage's seal tells of every service."""
    return [
        {
            "name": row.name,
            "pid": row.pid,
            "port": row.port,
            "restarts": fleet.restarts.get(row.name, 0),
            "rpcs": row.rpcs,
            "tokens": row.tokens,
        }
        for row in board.services
    ]
