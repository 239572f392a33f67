"""Which of a fleet's processes hang: health is asked, progress is read off the kernel's books (lodestar.liveness)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestar import metrics
from lodestar.liveness import SAID_SECONDS, Look, Silence, look_at
from lodestar.local.board import Board

if TYPE_CHECKING:
    from lodestar.crew.fleet import Member

ANSWER_SECONDS = 1.0
_OPTIONS = (
    # A server that was started again is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


class Signs:
    """The signs of life of one process, asked for on the looking thread: ``signs.ask()``, then ``signs.hear()``."""

    def __init__(self, pid: int, port: int | None, look: Look, bound: Callable[[], bool]) -> None:
        """
        Args:
            port: where its health is asked, on loopback; None for a process that serves nothing.
            bound: whether it listens already: a process that does not yet owes no answer.
        """
        self.pid = pid
        self.stopped = look.state == "stopped"
        self._bound = bound
        self._silence = Silence(look)
        self._channel = None if port is None else grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS)
        self._asked: Any = None

    @property
    def seconds(self) -> float:
        """Of silence that counts."""
        return self._silence.seconds

    def ask(self) -> None:
        """Asks for its health, without waiting."""
        if self._channel is not None:
            check = health_pb2_grpc.HealthStub(self._channel).Check
            self._asked = check.future(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)

    def hear(self) -> None:
        """Waits for the answer, whatever it says, and counts."""
        look = look_at(self.pid)
        if look is None:  # gone, which others notice, or no books are kept
            return
        self.stopped = look.state == "stopped"
        alive = not self.stopped if self._channel is None or not self._bound() else self._answered()
        self._silence.see(look, alive=alive)

    def _answered(self) -> bool:
        try:
            self._asked.result()
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return True

    def close(self) -> None:
        """Gives the connection back."""
        if self._channel is not None:
            self._channel.close()


class HangWatch:
    """Looks at processes on one thread (:meth:`look`); on another it tells and ends those that hang (:meth:`judge`)."""

    def __init__(self, board: Board, limit_seconds: float) -> None:
        self._board = board
        self._limit = limit_seconds
        self._said_after = min(SAID_SECONDS, limit_seconds / 2)
        self._signs: dict[str, Signs] = {}
        self._told: dict[str, str] = {}

    def look(self, members: Sequence[Member], bound: Callable[[Member], bool]) -> None:
        """Asks all that live at once, and waits a second at most."""
        living = {member.name: member for member in members if member.child.alive and member.restart_at is None}
        for name in [name for name, signs in self._signs.items() if name not in living]:
            self._forget(name)
        for name, member in living.items():
            signs, pid = self._signs.get(name), member.child.pid
            if (signs is None or signs.pid != pid) and (look := look_at(pid)) is not None:
                self._forget(name)
                port = member.row.port if member.row else None
                self._signs[name] = Signs(pid, port, look, partial(bound, member))
        watched = [*self._signs.values()]
        for one in watched:
            one.ask()
        for one in watched:
            one.hear()

    def silent(self, name: str) -> bool:
        """Whether a process did not answer when it was asked last."""
        signs = self._signs.get(name)
        return signs is not None and (signs.stopped or signs.seconds > 0)

    def judge(self, member: Member, asleep: float = 0.0) -> None:
        """Says that a process hangs, or that it no longer does; kills one that has for too long.

        Args:
            asleep: seconds that a thread of it has slept in the middle of its work, as it says itself.
        """
        signs = self._signs.get(member.name)
        if signs is None or signs.pid != member.child.pid:
            return
        silent, row = signs.seconds, member.row
        worst = max(silent, asleep)
        hangs = worst >= self._said_after
        metrics.SILENT_SECONDS.labels(member.name).set(worst if hangs else 0.0)
        if hangs and member.name not in self._told:
            self._told[member.name] = row.state if row else ""
            why = self._why(signs, asleep > silent)
            self._board.say(
                f"{member.name} hangs: {why} for {worst:.0f} s; after {self._limit:g} s it is started again", "warning"
            )
            if row:
                row.state = "hanging"
        elif not hangs and member.name in self._told:
            before = self._told.pop(member.name)
            self._board.say(f"{member.name} gives signs of life again")
            if row and row.state == "hanging":
                row.state = "ready" if before == "ready" else "starting"
        if silent >= self._limit:
            member.hung = f"hung ({self._why(signs, asleep=False)} for {silent:.0f} s) and was killed"
            member.silent = silent
            metrics.HANGS.labels(member.name).inc()
            self._told.pop(member.name, None)
            member.child.kill()
            member.child.wait(5)

    @staticmethod
    def _why(signs: Signs, asleep: bool) -> str:
        if signs.stopped:
            return "it is stopped (SIGSTOP)"
        return "a thread of it has slept in the middle of its work" if asleep else "its health does not answer"

    def forget(self, names: Sequence[str]) -> None:
        """Of processes that are stopped on purpose."""
        for name in names:
            self._told.pop(name, None)
            metrics.SILENT_SECONDS.labels(name).set(0.0)

    def _forget(self, name: str) -> None:
        if (signs := self._signs.pop(name, None)) is not None:
            signs.close()

    def close(self) -> None:
        """Gives every connection back. Nobody looks any more."""
        for name in list(self._signs):
            self._forget(name)
