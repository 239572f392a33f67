"""How many threads compute: the rule on invented books, the reader on files like /proc's, and one real run."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lodestar import cores
from lodestar.cores import INTERVAL_SECONDS, LONGEST_HOLD_SECONDS, Books, Follower, Look, compute_threads, follow


class Machine:
    """Books of a machine of ``cores`` cores where others keep ``others`` of them busy, and of this process on it.

    Who wants more than there is gets a part in proportion, as threads of one priority do.
    """

    def __init__(self, cores: float, limit: int, quota: float = 64.0) -> None:
        self.cores = cores
        self.allowed = min(quota, cores)
        self.now = Look(0.0, 0.0, 0.0, 0.0, self.allowed)
        self.follower = Follower(limit, self.now)

    def goes_on(self, others: float, seconds: float = 1.0, *, busy: float = 1.0) -> list[int]:
        """Threads after each look; ``busy`` is the part of the time in which this process has work."""
        seen = []
        for _ in range(round(seconds / INTERVAL_SECONDS)):
            wanted = self.follower.threads * busy
            share = min(1.0, self.cores / (wanted + others)) if wanted + others else 1.0
            now, dt = self.now, INTERVAL_SECONDS
            self.now = Look(
                now.at + dt,
                now.ran + wanted * share * dt,
                now.waited + wanted * (1 - share) * dt,
                now.idle + max(0.0, self.cores - (wanted + others) * share) * dt,
                self.allowed,
            )
            seen.append(self.follower.see(self.now))
        return seen


def test_on_a_quiet_machine_all_threads_that_were_asked_for_compute_always() -> None:
    assert set(Machine(2, 2).goes_on(0.0, 20)) == {2}
    assert set(Machine(16, 16).goes_on(0.2, 20)) == {16}


def test_beside_a_busy_process_one_core_is_left_to_it_within_a_look_or_two() -> None:
    machine = Machine(2, 2)
    machine.goes_on(0.0)
    assert machine.goes_on(1.0, 3)[2:] == [1] * 28
    machine = Machine(16, 16)
    machine.goes_on(0.0)
    assert set(machine.goes_on(2.0, 5)[5:]) <= {13, 14}


def test_a_machine_that_is_busy_at_the_start_is_known_to_be_at_the_first_look() -> None:
    machine = Machine(2, 2)
    assert machine.goes_on(1.0, 0.1, busy=0.5) == [1]


def test_threads_come_back_when_the_other_process_ends() -> None:
    machine = Machine(2, 2)
    machine.goes_on(1.0, 5)
    assert machine.goes_on(0.0, 2)[-10:] == [2] * 10


def test_what_comes_and_goes_moves_the_threads_less_and_less_often() -> None:
    machine = Machine(2, 2)
    seen = [machine.follower.threads]
    for _ in range(300):
        seen += machine.goes_on(0.0, INTERVAL_SECONDS) + machine.goes_on(3.0, INTERVAL_SECONDS)
    rises = [i for i, (a, b) in enumerate(pairwise(seen)) if b > a]
    assert len(rises) < 20
    assert max(b - a for a, b in pairwise(rises)) * INTERVAL_SECONDS > LONGEST_HOLD_SECONDS / 2


def test_a_process_that_waits_for_others_learns_nothing_from_their_work() -> None:
    machine = Machine(2, 2)
    machine.goes_on(0.0)
    assert set(machine.goes_on(2.0, 5, busy=0.05)) == {2}


def test_a_quota_of_a_cgroup_is_rounded_to_threads() -> None:
    for quota, threads in ((0.2, 1), (1.4, 1), (1.5, 2), (3.0, 3)):
        assert Machine(4, 4, quota).goes_on(0.0, 0.1, busy=0.1) == [threads], quota


@given(
    st.integers(1, 8),
    st.lists(st.tuples(*(st.floats(0, 9, allow_nan=False),) * 4, st.floats(0.1, 64)), max_size=40),
)
def test_there_is_always_a_thread_and_never_more_than_asked_for(limit: int, deltas: list[tuple[float, ...]]) -> None:
    look = Look(0.0, 0.0, 0.0, 0.0, 8.0)
    follower = Follower(limit, look)
    for at, ran, waited, idle, allowed in deltas:
        look = Look(look.at + at, look.ran + ran - 1, look.waited + waited - 1, look.idle + idle, allowed)
        assert 1 <= follower.see(look) <= limit


def books(root: Path, *, nice: int = 40, idle: int = 500, cgroup: str = "0::/pod\n") -> Books:
    """Books of a process with two threads, on a machine with more cores than this test may use."""
    for task, text in {"7": "1500000000 250000000 9", "8": "500000000 0 3"}.items():
        (root / "proc/self/task" / task).mkdir(parents=True, exist_ok=True)
        (root / "proc/self/task" / task / "schedstat").write_text(text)
    (root / "proc/self/schedstat").write_text("1500000000 250000000 9")
    (root / "proc/self/cgroup").write_text(cgroup)
    row = f"10 {nice} 20 {idle} 100 0 0 0 0 0"
    cpus = sorted(os.sched_getaffinity(0))
    lines = ["cpu 1 1 1 1 1", *(f"cpu{i} {row}" for i in (*cpus, max(cpus) + 1)), "intr 1 2 3"]
    (root / "proc/stat").write_text("\n".join(lines))
    return Books(root / "proc", root / "cgroups")


def test_books_are_read_from_the_kernels_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    look = books(tmp_path).look()
    assert (look.ran, look.waited, look.cores) == (2.0, 0.25, own)
    assert look.idle == pytest.approx(own * 6.4)
    monkeypatch.setattr(os, "getpriority", lambda *_: 5)
    assert books(tmp_path).look().idle == pytest.approx(own * 6.0), "nice processes do not give way to a nice one"


def test_a_quota_counts_from_whichever_group_is_the_tightest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    pod = tmp_path / "cgroups/pod"
    pod.mkdir(parents=True)
    (pod / "cpu.max").write_text("150000 100000\n")
    (pod / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 100000\n")
    (tmp_path / "cgroups/cpu.max").write_text("max 100000\n")
    look = books(tmp_path).look()
    assert look.cores == 1.5
    assert look.waited == pytest.approx(0.15), "what the quota took is not others' work"
    (pod / "cpu.max").write_text("max 100000\n")
    assert books(tmp_path).look().cores == 4


def test_a_quota_of_version_1_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    group = tmp_path / "cgroups/cpu,cpuacct/docker/x"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("250000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.stat").write_text("nr_periods 9\nthrottled_time 50000000\n")
    look = books(tmp_path, cgroup="5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n").look()
    assert (look.cores, look.waited) == (2.5, pytest.approx(0.2))


def test_a_system_without_books_leaves_the_threads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Books(tmp_path, tmp_path).kept
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "Books", lambda: Books(tmp_path, tmp_path))
    try:
        compute_threads(2)
        follow()
        assert torch.get_num_threads() == min(2, len(os.sched_getaffinity(0)))
    finally:
        compute_threads(before, fixed=True)


def test_fixed_threads_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(Follower, "see", lambda *_: pytest.fail("it was asked"))
    try:
        compute_threads(3, fixed=True)
        time.sleep(INTERVAL_SECONDS)
        follow()
        assert torch.get_num_threads() == 3
    finally:
        compute_threads(before, fixed=True)


BESIDE = """
import os, time, torch
from lodestar.cores import compute_threads, follow
compute_threads(2)
a = torch.rand(256, 256)
while True:
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        a @ a
    follow()
    print(torch.get_num_threads(), flush=True)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has nothing to share")
def test_a_real_process_leaves_a_core_to_real_others() -> None:
    spins = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    ours = subprocess.Popen([sys.executable, "-c", BESIDE], stdout=subprocess.PIPE, text=True)
    try:
        assert ours.stdout is not None
        end = time.monotonic() + 30
        seen = [int(ours.stdout.readline())]
        while 1 not in seen and time.monotonic() < end:
            seen.append(int(ours.stdout.readline()))
        assert 1 in seen
    finally:
        for process in (*spins, ours):
            process.kill()
            process.communicate()


def test_what_a_person_told_openmp_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    cores.spin_shortly()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cores.spin_shortly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
