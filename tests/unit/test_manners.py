"""Scorers are polite to their own run alone, thread by thread."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from lodestar import manners
from lodestar.rpc.batching import ComputeThread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness is a process's there")


def own_niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


async def test_work_is_polite_while_nobody_else_keeps_cores_busy_and_ordinary_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = 0.0
    monkeypatch.setattr(manners, "niceness", lambda: 3)
    monkeypatch.setattr(manners.Others, "cores", lambda self: busy)
    before = own_niceness()
    compute = ComputeThread("scorer", threads=1)
    try:
        polite = await compute.run(own_niceness)
        busy = 2.0
        ordinary = await compute.run(own_niceness)
        busy = 0.0
        assert (polite, ordinary) == (min(19, before + 3), before)
        assert await compute.run(own_niceness) == polite
        assert own_niceness() == before
    finally:
        compute.close()


async def test_threads_of_processes_that_were_told_nothing_are_ordinary() -> None:
    compute = ComputeThread("scorer", threads=1)
    try:
        assert await compute.run(own_niceness) == own_niceness()
    finally:
        compute.close()


def test_others_are_the_processes_that_are_not_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's busy loop counts, a relative's does not: seen from a scorer that this process has started."""
    loop = "import time\nuntil = time.monotonic() + 6\nwhile time.monotonic() < until: pass"
    look = """
import os, time
from lodestar import manners
others = manners.Others()
began = others._run_seconds()
time.sleep(2)
print(others._run_seconds() - began)
"""
    # This process stands for the conductor's child, so that its own children are the run's.
    relative = subprocess.Popen([sys.executable, "-c", loop])
    try:
        seen = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
        assert float(seen.stdout) > 0.02, "the run's own busy loop is known"
        others = manners.Others()
        time.sleep(1.1)
        assert others.cores() >= 0
    finally:
        relative.kill()
        relative.wait()
