"""Whether a process hangs or is merely slow: what the kernel's books say of it while it gives no sign of life.

Wall time alone says nothing: on a machine whose cores others keep busy an honest process is silent for minutes. So
silence counts only while the process could have spoken and did not: while it slept, or for as long as it was run.
Two clocks, both pure:

- :class:`Silence`, of a process seen from outside. A server gives a sign of life when its health answers. Of the
  time in which a thread of it is ready only what it was run counts, none of that in which it waits for a disk or a
  debugger holds it.
  A process stopped by SIGSTOP is run by nobody and waits for nothing: all its time counts.
- :class:`Sleep`, of one thread that works on something for which it needs nobody else, seen from inside. It hangs when
  it has slept for long without having been run once, while the process's other threads did nothing for it either.

:func:`watch` looks after the threads of this process, and ends it with its stacks in the log when one of them hangs:
whoever supervises it starts another. Where the kernel keeps no books (other systems than Linux) nobody hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from lodestar import metrics
from lodestar.cores import ran_and_waited
from lodestar.errors import Hung

SAID_SECONDS = 5.0
"""Silence that is told to people; an option's time later the process is restarted."""
LOOK_SECONDS = 1.0
LONGEST_LOOK_SECONDS = 3.0
"""More than this is never counted between two looks: whoever looks was put aside itself."""
HELPED = 0.25
"""Cores that the process's other threads use or wait for, from which they are taken to work for the one that sleeps."""
PROC = Path("/proc")

State = Literal["asleep", "ready", "stopped", "debugged", "disk"]
"""ready: a thread runs, or would if it were let. stopped: by SIGSTOP. disk: in a wait that nothing interrupts."""


@dataclass(frozen=True, slots=True)
class Look:
    """A process at one moment: ``Look(at=12.5, ran=0.4, waited=3.1, state="asleep")``."""

    at: float
    """Seconds of a steady clock."""
    ran: float
    """CPU seconds of its threads."""
    waited: float
    """Seconds that its threads were ready and were not run, summed; of each up to when it was run last."""
    state: State


class Silence:
    """Seconds that a process has been silent and need not have been. Pure: the looks are all that it knows."""

    def __init__(self, look: Look) -> None:
        self.seconds = 0.0
        self._before = look

    def see(self, look: Look, *, alive: bool) -> float:
        """The seconds so far; a sign of life since the last look ends the silence."""
        before, self._before = self._before, look
        elapsed = min(look.at - before.at, LONGEST_LOOK_SECONDS)
        if alive:
            self.seconds = 0.0
        elif look.state == "ready":
            self.seconds += min(elapsed, max(0.0, look.ran - before.ran))
        elif look.state in ("asleep", "stopped"):
            self.seconds += max(0.0, elapsed - max(0.0, look.waited - before.waited))
        return self.seconds


def look_at(pid: int) -> Look | None:
    """A process of this machine now; None for one that is gone, or where no books are kept."""
    try:
        folder = PROC / str(pid)
        return Look(time.monotonic(), *ran_and_waited(folder), _state_of_all(folder))
    except OSError:
        return None


def _state(folder: Path) -> State:
    """Of a process's first thread, or of one thread.

    Raises:
        OSError: it is gone.
    """
    letter = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    states: dict[str, State] = {"R": "ready", "T": "stopped", "t": "debugged", "D": "disk"}
    return states.get(letter, "asleep")


def _state_of_all(process: Path) -> State:
    first = _state(process)
    return "ready" if first == "asleep" and _ready(process) else first


def _ready(process: Path, but: int = 0) -> bool:
    """Whether any thread runs, or would if it were let; the one ``but`` is left out."""
    for task in (process / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if int(task.name) != but and _state(task) == "ready":
                return True
    return False


@dataclass(frozen=True, slots=True)
class ThreadLook:
    """A working thread at one moment: ``ThreadLook(at=12.5, turns=311, others=4.2, ready=False, state="asleep")``."""

    at: float
    turns: int
    """How often the kernel has run it."""
    others: float
    """CPU seconds that the process's other threads ran or stood ready."""
    ready: bool
    """Whether another thread does now."""
    state: State


class Sleep:
    """Seconds that a thread has slept in the middle of its work. Pure."""

    def __init__(self, look: ThreadLook) -> None:
        self.seconds = 0.0
        self._before = look

    def see(self, look: ThreadLook) -> float:
        """The seconds so far; one turn, help of other threads, a disk or a debugger ends the sleep."""
        before, self._before = self._before, look
        elapsed = min(look.at - before.at, LONGEST_LOOK_SECONDS)
        helped = look.ready or look.others - before.others > HELPED * (look.at - before.at)
        slept = look.turns == before.turns and look.state == "asleep" and not helped
        self.seconds = self.seconds + elapsed if slept else 0.0
        return self.seconds


@dataclass(slots=True, eq=False)
class _Work:
    name: str
    thread: int
    children: bool = False
    """Whether it may wait for processes that this one has started."""
    waiting: bool = False
    sleep: Sleep | None = field(default=None)


class _Mine(threading.local):
    work: _Work | None = None


_MINE = _Mine()
_WORKS: dict[int, _Work] = {}
"""By the kernel's id of the thread."""


@contextlib.contextmanager
def working(name: str, *, children: bool = False) -> Iterator[None]:
    """This thread works on something for which it needs nobody else: asleep in it for long, it hangs.

    With ``children`` it may wait for processes that this one has started.
    """
    outer = _MINE.work
    work = _MINE.work = _Work(name, threading.get_native_id(), children)
    _WORKS[work.thread] = work
    try:
        yield
    finally:
        _MINE.work = outer
        if outer is None:
            del _WORKS[work.thread]
        else:
            _WORKS[work.thread] = outer


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Within :func:`working`: for the while it rightly waits for somebody else."""
    work = _MINE.work
    if work is not None:
        work.waiting, work.sleep = True, None
    try:
        yield
    finally:
        if work is not None:
            work.waiting = False


def asleep() -> tuple[str, float]:
    """The work whose thread has slept the longest, and for how many seconds. To be called again and again."""
    longest = ("", 0.0)
    own = PROC / "self"
    for work in list(_WORKS.values()):
        thread = own / "task" / str(work.thread)
        try:
            ran, waited, turns = (int(figure) for figure in (thread / "schedstat").read_text().split())
            everybody = sum(ran_and_waited(own))
            others = everybody - (ran + waited) / 1e9
            ready = _ready(own, but=threading.get_native_id())
            look = ThreadLook(time.monotonic(), turns, others, ready, _state(thread))
        except OSError:  # it ended, or no books are kept
            continue
        if work.waiting or (work.children and psutil.Process().children()):
            work.sleep = None
            continue
        if work.sleep is None:
            work.sleep = Sleep(look)
        elif (seconds := work.sleep.see(look)) > longest[1]:
            longest = (work.name, seconds)
    return longest


def watch(limit_seconds: float, end: Callable[[str], None] | None = None) -> None:
    """Looks after this process's working threads from now on; ends the process when one hangs.

    Args:
        limit_seconds: of sleep.
        end: is told which work hangs, instead of the process's end.
    """

    def look() -> None:
        while True:
            time.sleep(min(LOOK_SECONDS, limit_seconds / 4))
            name, seconds = asleep()
            metrics.ASLEEP_SECONDS.set(seconds if seconds >= min(SAID_SECONDS, limit_seconds / 2) else 0.0)
            if seconds >= limit_seconds:
                (end or _end)(f"{name} hangs: its thread has not been run for {seconds:.0f} s")
                return

    threading.Thread(target=look, name="liveness", daemon=True).start()


def _end(why: str) -> None:
    faulthandler.dump_traceback(sys.stderr)
    print(f"error: {why}; the stacks above say where", file=sys.stderr, flush=True)
    os._exit(Hung.exit_code)
