"""How many threads compute: as many as there are cores that nobody else keeps busy, looked at while the work goes on.

Threads of one operation wait for each other. One of them that does not run holds up the others, so that on a machine
with other work two threads are slower than one: if each gets the share s of the time that it asks for, both run at
once for s² of it only. So a compute thread says once how many it may use, ``compute_threads(2)``, and every forward
pass and every step of the engine calls ``follow()``, which ten times a second compares two looks at the kernel's books:

- threads of this process stood ready and were not run: fewer threads compute (niceness is in that figure already);
- cores were idle: more do, up to what was asked for. A rise that did not last is tried again later each time.

Sums depend on the number of threads: where results must be bit-equal it is ``fixed``. Where the kernel keeps no such
books (other systems than Linux) the number stays what was asked for, at most the machine's cores.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from math import floor, inf
from pathlib import Path

INTERVAL_SECONDS = 0.1
"""Between two looks. The kernel counts idle time in hundredths of a second."""
SHORTEST_SECONDS = 0.01
"""Two looks that are closer than the kernel counts say nothing."""
CROWDED = 0.4
"""Threads' worth of waiting from which fewer are faster: at 0.4 of two threads, 2 s² is 1.28 of what one alone does, as
much as a second thread is worth on an idle machine (1.4 to 1.6 times one; docs/log.md)."""
SPARE = 0.7
"""Part of a core that must be idle for one more thread."""
ACTIVE = 0.5
"""Cores that the process must have asked for since the last look, for its waiting to say anything."""
PROVEN_SECONDS = 1.0
"""A rise that lasted this long was right."""
FIRST_HOLD_SECONDS = 0.25
LONGEST_HOLD_SECONDS = 8.0
"""Between a fall and the next rise: the first after every fall, doubled while rises do not last."""
SWITCH_SECONDS = 0.0005
"""After which a thread of Python must give way to another that wants to run. After every operation of torch a compute
thread may have to wait that long for the event loop's, a hundred times a step: with Python's own 5 ms it stands."""
SPINS = "100000"
"""How long an idle OpenMP thread spins: about 0.1 ms. Sleeping at once costs a two-thread update half its speed, and
spinning for ever takes the cores from the other processes (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Look:
    """The kernel's books at one moment: ``Look(at=12.5, ran=3.1, waited=0.2, idle=9.0, cores=2.0)``."""

    at: float
    """Seconds of a steady clock."""
    ran: float
    """CPU seconds of this process."""
    waited: float
    """Seconds that threads of this process were ready and were not run, summed; without what its quota took."""
    idle: float
    """CPU seconds, idle or of processes that give way to this one, of the cores that it may use."""
    cores: float
    """Cores that it may use: affinity and cgroup quota."""


class Follower:
    """The rule: ``threads`` after each :meth:`see`. Pure: the looks are all that it knows."""

    def __init__(self, limit: int, look: Look) -> None:
        """At most ``limit`` threads; the first look is the start's."""
        self.limit = limit
        self.threads = limit
        self._before = look
        self._settled = False
        self._risen = -inf
        self._hold = FIRST_HOLD_SECONDS
        self._held_until = -inf

    def see(self, look: Look) -> int:
        """Threads to compute with until the next look."""
        before = self._before
        elapsed = look.at - before.at
        if elapsed < SHORTEST_SECONDS:
            return self.threads
        self._before = look
        ran, waited = max(0.0, look.ran - before.ran), max(0.0, look.waited - before.waited)  # threads may have ended
        idle = look.idle - before.idle
        most = max(1, min(self.limit, floor(look.cores + 0.5)))
        if not self._settled:  # the first look: what others left free while this process began
            self._settled = True
            self.threads = floor((ran + idle) / elapsed + 1 - SPARE)
        elif ran + waited >= ACTIVE * elapsed:
            share = ran / (ran + waited)
            if self.threads > 1 and self.threads * (1 - share) > CROWDED:
                self._fall(look.at, floor(self.threads * share))
            elif self.threads < most and look.at >= self._held_until:
                self._rise(look.at, floor(idle / elapsed + 1 - SPARE))
        self.threads = max(1, min(self.threads, most))
        return self.threads

    def _fall(self, at: float, threads: int) -> None:
        lasted = at - self._risen >= PROVEN_SECONDS
        self._hold = FIRST_HOLD_SECONDS if lasted else min(2 * self._hold, LONGEST_HOLD_SECONDS)
        self._held_until = at + self._hold
        self.threads = threads

    def _rise(self, at: float, more: int) -> None:
        if more > 0:
            self._risen = at
            self.threads += more


class Books:
    """Reads the kernel's books for this process: ``Books().look()``."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._groups = _groups_of(proc, cgroups)
        self.kept = (proc / "self" / "schedstat").exists() and (proc / "stat").exists()
        """Whether this system keeps them."""

    def look(self) -> Look:
        """The books now."""
        cpus = os.sched_getaffinity(0)
        cores, throttled = float(len(cpus)), 0.0
        for group in self._groups:
            quota, lost = _quota(group)
            if quota < cores:
                cores, throttled = quota, lost
        ran, waited = ran_and_waited(self._proc / "self")
        return Look(time.monotonic(), ran, max(0.0, waited - throttled), self._idle(cpus), cores)

    def _idle(self, cpus: set[int]) -> float:
        gives_way = os.getpriority(os.PRIO_PROCESS, 0) <= 0
        ticks = 0
        for line in (self._proc / "stat").read_text().splitlines():
            name, *figures = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cpus:
                nice, idle, iowait = int(figures[1]), int(figures[3]), int(figures[4])
                ticks += idle + iowait + (nice if gives_way else 0)
        return ticks / os.sysconf("SC_CLK_TCK")


def ran_and_waited(process: Path) -> tuple[float, float]:
    """CPU seconds that the threads of a process (``/proc/PID``) ran, and that they were ready and were not run.

    Raises:
        OSError: it is gone, or this system keeps no such books.
    """
    ran = waited = 0
    for task in (process / "task").iterdir():
        try:
            run_ns, wait_ns, _ = (task / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # the thread ended meanwhile
            continue
        ran, waited = ran + int(run_ns), waited + int(wait_ns)
    return ran / 1e9, waited / 1e9


def _groups_of(proc: Path, cgroups: Path) -> list[Path]:
    """Folders of the process's cgroups that may hold a CPU quota, its own first, of version 2 or 1."""
    listed = proc / "self" / "cgroup"
    found = []
    for line in listed.read_text().splitlines() if listed.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        inner = root / path.lstrip("/")
        found += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return [folder for folder in found if any((folder / f).exists() for f in ("cpu.max", "cpu.cfs_quota_us"))]


def _quota(group: Path) -> tuple[float, float]:
    """Cores that a cgroup may use, and the seconds that it was stopped for using them; infinite and 0 for none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota in ("max", "-1"):
            return inf, 0.0
        figures = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    except FileNotFoundError:  # the group has gone, or shows no more than its limit
        return inf, 0.0
    seconds = int(figures.get("throttled_usec", 0)) / 1e6 + int(figures.get("throttled_time", 0)) / 1e9
    return int(quota) / int(period), seconds


class _Here(threading.local):
    follower: Follower | None = None
    books: Books
    next_look: float


_HERE = _Here()


def compute_threads(limit: int, *, fixed: bool = False) -> None:
    """Let torch compute with ``limit`` threads when called from this one, or with fewer where others need the cores.

    Args:
        fixed: exactly ``limit``, whatever happens: sums keep their bits.
    """
    import torch  # a process without a model has no need of it

    sys.setswitchinterval(SWITCH_SECONDS)
    _HERE.follower = None
    if not fixed:
        limit = min(limit, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.set_num_threads(limit)  # OpenMP keeps it per calling thread
    if limit == 1 or fixed:
        return
    books = Books()
    if books.kept:
        look = books.look()
        _HERE.follower, _HERE.books, _HERE.next_look = Follower(limit, look), books, look.at + INTERVAL_SECONDS


def follow() -> None:
    """Between two pieces of work of a compute thread: see whether the machine has more or fewer cores to give."""
    follower = _HERE.follower
    if follower is None or time.monotonic() < _HERE.next_look:
        return
    import torch

    look = _HERE.books.look()
    threads = follower.threads
    if follower.see(look) != threads:
        torch.set_num_threads(follower.threads)
    _HERE.next_look = look.at + INTERVAL_SECONDS


def spin_shortly() -> None:
    """Tell OpenMP, before torch is imported, to let idle threads spin for a moment; what a person has set holds."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
