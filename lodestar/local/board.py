"""What a person may see of a run: written by the launcher's parts, read by the views."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from lodestar.errors import RunPaused
from lodestar.numerals import in_a_line
from lodestar.records import RunStatus

HISTORY = ("score", "kl_sequence", "tokens_per_second")
"""Metrics whose past the view draws."""

PROGRESS = ("stage", "seconds", "done", "total")
"""Of a line of progress; the rest are figures."""
StageState = Literal["waiting", "running", "done", "kept", "failed"]
ServiceState = Literal["starting", "ready", "hanging", "restarting", "stopped"]


@dataclass(slots=True)
class StageRow:
    """One line of the stage list."""

    name: str
    budget_seconds: float | None = None
    state: StageState = "waiting"
    seconds: float = 0.0
    """Of the whole stage once it is done."""
    started: float = 0.0
    """time.monotonic() of its start."""
    fraction: float | None = None
    detail: str = ""
    cut_short: str = ""
    """How far it came where its clock ended it: ``320 of 960 steps``."""

    @property
    def elapsed(self) -> float:
        """Seconds so far, or in all."""
        return time.monotonic() - self.started if self.state == "running" else self.seconds


@dataclass(slots=True)
class ServiceRow:
    """One line of the service list."""

    name: str
    port: int
    pid: int = 0
    state: ServiceState = "starting"
    restarts: int = 0
    rpcs: int = 0
    tokens: int = 0
    weight_step: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """Something worth a line: ``Message(…, "warning", "policy-0 was killed; restarting it")``."""

    time: float
    """time.time()."""
    level: Literal["info", "warning"]
    text: str


@dataclass(slots=True)
class Board:
    """The state of a run as its launcher knows it. Parts write fields; :meth:`say` is for lines."""

    run: str
    stages: list[StageRow]
    services: list[ServiceRow] = field(default_factory=list)
    status: RunStatus | None = None
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTORY})
    win_rate: dict[str, Any] | None = None
    """The newest running win rate: step, value, low, high, n."""
    queue_waiting: int | None = None
    queue_taken: int | None = None
    messages: list[Message] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    listener: Callable[[Message], None] | None = None
    learner: str | None = None
    """gRPC target of the present stage's LearnerService, where it serves one."""
    stepping: str = ""
    """The stage whose status is the newest."""
    invitation: str = ""
    """Link by which the person at this terminal comes in to judge; it is a secret, and told to nobody else."""
    told: int = 0
    """Messages that came from another board (lodestar.crew.progress)."""
    ending: str = ""
    """Why the run is to end before its next stage; empty: it is not."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, text: str, level: Literal["info", "warning"] = "info") -> None:
        """Adds a line."""
        message = Message(time.time(), level, text)
        with self._lock:
            self.messages.append(message)
        if self.listener:
            self.listener(message)

    def go_on(self, name: str) -> None:
        """Asked before a stage begins.

        Raises:
            RunPaused: somebody wants the run to end between stages.
        """
        if self.ending:
            raise RunPaused(f"the run was {self.ending}, before {name}; --resume goes on")

    def stage(self, name: str) -> StageRow:
        """The row of a stage."""
        return next(row for row in self.stages if row.name == name)

    def service(self, name: str, port: int) -> ServiceRow:
        """The row of a service, made when it is new; one of an earlier stage may have had another port."""
        for row in self.services:
            if row.name == name:
                row.port = port
                return row
        self.services.append(ServiceRow(name, port))
        return self.services[-1]

    @contextmanager
    def running(self, name: str) -> Iterator[StageRow]:
        """A stage from its start to its end, with its lines."""
        row = self.stage(name)
        row.state, row.started = "running", time.monotonic()
        budget = f", budget {row.budget_seconds:.0f} s" if row.budget_seconds else ""
        self.say(f"{name}: starts{budget}")
        try:
            yield row
        except BaseException:
            row.seconds, row.state = row.elapsed, "failed"
            raise
        row.seconds, row.state = row.elapsed, "done"
        row.fraction = 1.0
        self.say(f"{name}: done in {row.seconds:.1f} s{' · ' + row.detail if row.detail else ''}")

    def kept(self, name: str, seconds: float) -> None:
        """A stage need not run: an earlier start did it."""
        row = self.stage(name)
        row.state, row.seconds, row.fraction = "kept", seconds, 1.0

    def progress(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        """Takes what a stage's process wrote of its progress."""
        row = self.stage(name)
        for line in lines:
            figures = {key: line[key] for key in line if key not in PROGRESS}
            if line["total"]:
                row.fraction = line["done"] / line["total"]
            if "said" in figures:
                row.detail = figures["said"]
                self.say(f"{name}: {row.detail}")
            elif "warned" in figures:
                self.say(f"{name}: {figures['warned']}", "warning")
            elif "cut_short" in figures:
                at = f"{line['done']} of {line['total']} steps"
                self.say(f"{name}: max_seconds cut it short at {at}; its figures are of what it had learned", "warning")
                row.cut_short = at
            elif figures:
                row.detail = in_a_line(figures)

    def update_status(self, stage: str, status: RunStatus) -> None:
        """Takes the word of a stage that serves its status; a new step adds to the history."""
        if status.metrics and (self.status is None or status.step != self.status.step):
            for name, values in self.history.items():
                if name in status.metrics:
                    values.append(float(status.metrics[name]))
        self.status, self.stepping = status, stage
        row = self.stage(stage)
        row.fraction = status.step / status.total_steps if status.total_steps else None
