"""Slow processes are let be, stopped and stuck ones are found: the rules by themselves, and on real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar.errors import Hung
from lodestar.liveness import (
    LONGEST_LOOK_SECONDS,
    Look,
    Silence,
    Sleep,
    State,
    ThreadLook,
    asleep,
    look_at,
    waiting,
    working,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps no such books")


def silence(looks: list[tuple[float, float, float, State, bool]]) -> float:
    counted = Silence(Look(0.0, 0.0, 0.0, "asleep"))
    for at, ran, waited, state, alive in looks:
        counted.see(Look(at, ran, waited, state), alive=alive)
    return counted.seconds


def test_a_stopped_process_is_silent_for_all_the_time_it_is_stopped() -> None:
    assert silence([(float(second), 0.0, 0.0, "stopped", False) for second in range(1, 61)]) == 60


def test_a_process_that_nobody_runs_is_not_silent() -> None:
    """Load 20: ready all the time, run for a twentieth of it; what it waited is in the books once it was run."""
    starved = [(float(second), 0.05 * second, 20.0 * (second // 20), "ready", False) for second in range(1, 601)]
    assert silence(starved) == pytest.approx(30)  # type: ignore[arg-type]
    turns = [(float(second), 0.01 * second, 0.99 * second, "asleep", False) for second in range(1, 601)]
    assert silence(turns) == pytest.approx(6)  # type: ignore[arg-type]


def test_a_process_that_is_run_and_gives_no_sign_of_life_is_silent() -> None:
    assert silence([(float(second), 1.0 * second, 0.0, "ready", False) for second in range(1, 61)]) == 60


@pytest.mark.parametrize("state", ["disk", "debugged"])
def test_a_process_that_a_disk_or_a_debugger_holds_is_not_silent(state: State) -> None:
    assert silence([(float(second), 0.0, 0.0, state, False) for second in range(1, 600)]) == 0


def test_a_sign_of_life_ends_the_silence() -> None:
    assert silence([(30.0, 0, 0, "asleep", False), (31.0, 0, 0, "asleep", True), (32.0, 0, 0, "asleep", False)]) == 1


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), max_size=30))
def test_nothing_counts_for_longer_than_it_was_looked_at(steps: list[tuple[float, float]]) -> None:
    counted, at, waited = Silence(Look(0.0, 0.0, 0.0, "asleep")), 0.0, 0.0
    for number, (elapsed, more) in enumerate(steps, 1):
        at, waited = at + elapsed, waited + more
        seconds = counted.see(Look(at, 0.0, waited, "asleep"), alive=False)
        assert 0 <= seconds <= min(at, number * LONGEST_LOOK_SECONDS) + 1e-6


def sleep(looks: list[ThreadLook]) -> float:
    counted = Sleep(ThreadLook(0.0, 0, 0.0, False, "asleep"))
    for look in looks:
        counted.see(look)
    return counted.seconds


def test_a_thread_that_is_never_run_sleeps_and_one_turn_wakes_it() -> None:
    still = [ThreadLook(float(second), 0, 0.001 * second, False, "asleep") for second in range(1, 61)]
    assert sleep(still) == 60
    assert sleep([*still, ThreadLook(61.0, 1, 0.061, False, "asleep")]) == 0


@pytest.mark.parametrize(
    ("others", "ready", "state"), [(0.5, False, "asleep"), (0, True, "asleep"), (0, False, "disk")]
)
def test_a_thread_for_which_others_work_or_stand_ready_does_not_hang(others: float, ready: bool, state: State) -> None:
    assert sleep([ThreadLook(float(second), 0, others * second, ready, state) for second in range(1, 61)]) == 0


@contextmanager
def child(target: Callable[[], None]) -> Iterator[int]:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    try:
        yield process.pid or 0
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


def looked_at(pid: int, seconds: float) -> tuple[Silence, Look]:
    first = look_at(pid)
    assert first is not None
    counted, look = Silence(first), first
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
        found = look_at(pid)
        assert found is not None
        look = found
        counted.see(look, alive=False)
    return counted, look


@linux
def test_a_real_process_that_is_stopped_is_told_from_one_that_others_keep_from_running() -> None:
    def crowd_out() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        while True:
            pass

    def starve() -> None:
        os.nice(19)
        crowd_out()

    with child(starve) as slow, child(crowd_out), child(crowd_out):
        counted, look = looked_at(slow, 1.5)
        assert look.state == "ready"
        assert counted.seconds < 0.75, "it stood ready"
        os.kill(slow, signal.SIGSTOP)
        counted, look = looked_at(slow, 1.0)
        assert look.state == "stopped"
        assert counted.seconds > 0.8
    assert look_at(slow) is None


@linux
def test_a_thread_that_sleeps_in_its_work_is_found_and_one_that_waits_by_right_is_not() -> None:
    release = threading.Event()

    def stuck() -> None:
        with working("stuck"):
            release.wait()

    def patient() -> None:
        with working("patient"), waiting():
            release.wait()

    threads = [threading.Thread(target=target) for target in (stuck, patient)]
    for thread in threads:
        thread.start()
    try:
        until, found = time.monotonic() + 10, ("", 0.0)
        while found[1] < 0.5 and time.monotonic() < until:
            time.sleep(0.1)
            found = asleep()
        assert found[0] == "stuck"
        assert found[1] >= 0.5
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert asleep() == ("", 0.0)


@linux
def test_a_process_whose_work_hangs_ends_itself_with_its_stacks_in_the_log() -> None:
    script = """
import threading
from lodestar.liveness import watch, working
watch(1.0)
def the_stuck_call():
    threading.Event().wait()
with working("training"):
    the_stuck_call()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == Hung.exit_code
    assert "the_stuck_call" in done.stderr
    assert "error: training hangs: its thread has not been run for" in done.stderr


@linux
def test_work_that_computes_for_longer_than_the_limit_is_let_be() -> None:
    script = """
import time
from lodestar.liveness import watch, working
watch(0.5)
until = time.monotonic() + 2
with working("training"):
    while time.monotonic() < until:
        sum(range(1000))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
