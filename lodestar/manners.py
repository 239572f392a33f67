"""Scoring gives way to the run's own generation, and to nobody else.

A process cannot take niceness back without rights, but niceness is each thread's own on Linux: a scorer has two compute
threads, a polite one and an ordinary one, and each piece of work is given to one of them. On the polite one scoring
leaves the cores to generation, each of whose steps would wait for a thread that was put aside (docs/log.md). Where
other programs keep cores busy politeness would be to them, too, and they never end: there the ordinary thread works.
On other systems than Linux nobody is polite.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil

OTHERS = 0.5
"""Cores that other programs keep busy, from which on nobody is polite."""
LOOK_SECONDS = 1.0
_STAT = Path("/proc/stat")


def niceness() -> int:
    """What the compute threads of this process are to add to their niceness while they are polite; 0: nothing."""
    return _TOLD[0] if _STAT.exists() else 0


def be_polite(by: int) -> None:
    """Said once, before a process makes its compute threads."""
    _TOLD[0] = by


_TOLD = [0]


def nice_thread(by: int) -> None:
    """Adds to the niceness of the calling thread and of those that it will start. Linux keeps one for each thread."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + by))


class Others:
    """Cores that processes which are not this run's keep busy: ``Others().cores()``."""

    def __init__(self) -> None:
        self._cores = 0.0
        self._at, self._all, self._ours = time.monotonic(), _busy_seconds(), self._run_seconds()

    def cores(self) -> float:
        """Over the last second or so."""
        now = time.monotonic()
        if now - self._at >= LOOK_SECONDS:
            everybody, ours = _busy_seconds(), self._run_seconds()
            theirs = everybody - self._all - max(0.0, ours - self._ours)  # one of ours may have ended
            self._cores = max(0.0, theirs / (now - self._at))
            self._at, self._all, self._ours = now, everybody, ours
        return self._cores

    def _run_seconds(self) -> float:
        """CPU seconds of the run: the fork server's children and theirs, the conductor, and what it started."""
        total = 0.0
        server = psutil.Process(os.getppid())
        conductor = server.parent() or server
        for process in (conductor, *conductor.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


def _busy_seconds() -> float:
    """CPU seconds that the machine's cores were busy."""
    user, nice, system, _, _, irq, softirq, steal = (int(n) for n in _STAT.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
