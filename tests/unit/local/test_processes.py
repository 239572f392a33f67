"""The fork server: children share its imports, report how they end, and never outlive the launcher."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lodestar.local.processes import Processes

LIBRARY = """
import os, subprocess, sys, time
from lodestar.errors import ConfigError, NonFinite
def code(argument): return argument["code"]
def refuse(argument): raise ConfigError("ppo.steps", "must be positive")
def crash(argument): raise KeyError("missing")
def crash_noisily(argument):
    import atexit
    atexit.register(lambda: print("nanobind: leaked 3!\\nSee https://nanobind.invalid/refleaks", file=sys.stderr))
    raise KeyError("missing")
def fill(argument):
    with open("/dev/full", "w") as file:
        file.write("x")
def sleep(argument): time.sleep(100)
def niceness(argument):
    from lodestar.manners import niceness
    assert os.nice(0) == argument["own"]
    return niceness()
def imports(argument): return 0 if argument["module"] in sys.modules else 9
def grandchild(argument):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    print(child.pid, flush=True)
    time.sleep(100)
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    library = tmp_path_factory.mktemp("library")
    (library / "jobs_for_tests.py").write_text(LIBRARY)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(library)
    try:
        with Processes(tmp_path_factory.mktemp("logs")) as processes:
            yield processes
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def test_the_server_is_single_threaded_when_it_forks(processes: Processes) -> None:
    assert processes.wait_ready(60)
    assert processes.server_threads == 1


def test_children_find_the_heavy_imports_done_and_start_at_once(processes: Processes) -> None:
    processes.wait_ready(60)
    began = time.monotonic()
    child = processes.start("imports", "jobs_for_tests:imports", {"module": "torch"})
    assert time.monotonic() - began < 1.0
    assert child.wait(10) == 0


def test_a_child_is_told_how_polite_its_compute_threads_are_and_is_no_nicer_itself(processes: Processes) -> None:
    polite = processes.start("polite", "jobs_for_tests:niceness", {"own": os.nice(0)}, nice=5)
    assert polite.wait(30) == 5, polite.tail(20)


def test_exit_codes_and_signals_arrive(processes: Processes) -> None:
    assert processes.start("five", "jobs_for_tests:code", {"code": 5}).wait(10) == 5
    child = processes.start("sleeper", "jobs_for_tests:sleep", {})
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert "killed by signal 9" in str(child.error())


def test_an_expected_error_is_a_sentence_with_its_exit_code(processes: Processes) -> None:
    child = processes.start("refused", "jobs_for_tests:refuse", {})
    assert child.wait(10) == 2
    assert str(child.error()) == "ppo.steps: must be positive"
    assert child.error().exit_code == 2
    assert "Traceback" not in child.tail(50)


def test_a_crash_names_the_exception_and_the_log(processes: Processes) -> None:
    child = processes.start("crashed", "jobs_for_tests:crash", {})
    assert child.wait(10) == 1
    assert "KeyError: 'missing'" in str(child.error())
    assert "crashed.log" in str(child.error())


def test_what_libraries_write_as_a_child_goes_is_not_the_reason(processes: Processes) -> None:
    child = processes.start("noisy", "jobs_for_tests:crash_noisily", {})
    assert child.wait(10) == 1
    assert "KeyError: 'missing'" in str(child.error())
    assert "nanobind" not in str(child.error())
    assert "Traceback" in child.tail(50)


def test_a_child_takes_what_it_started_with_it(processes: Processes) -> None:
    child = processes.start("parent", "jobs_for_tests:grandchild", {})
    grandchild = _first_number(child.log)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    _gone(grandchild)


def test_nothing_outlives_a_killed_launcher(tmp_path: Path) -> None:
    (tmp_path / "jobs_for_tests.py").write_text(LIBRARY)
    launcher = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from lodestar.local.processes import Processes
        with Processes(Path({str(tmp_path / "logs")!r}), preload=["json"]) as processes:
            child = processes.start("parent", "jobs_for_tests:grandchild", {{}})
            print(processes._server.pid, child.pid, flush=True)
            time.sleep(100)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        pids.append(_first_number(tmp_path / "logs" / "parent.log"))
        process.kill()
    for pid in pids:
        _gone(pid)


def _first_number(log: Path) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().endswith("\n"):
            return int(log.read_text().split()[0])
        time.sleep(0.02)
    raise AssertionError(f"{log} stayed empty")


def _gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


def test_files_of_the_current_folder_shadow_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis.py").write_text("raise SystemExit('a file of the current folder was imported')")
    monkeypatch.chdir(tmp_path)
    with Processes(tmp_path / "logs", ["redis"]) as processes:
        assert processes.wait_ready(60), (tmp_path / "logs" / "forkserver.log").read_text()
        child = processes.start("child", "lodestar.local.lifeline:missing", {})
        assert child.wait(30) == 1
        assert "missing" in child.last_error()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_a_sentence_wherever_it_comes_up(processes: Processes) -> None:
    child = processes.start("fill", "jobs_for_tests:fill", {})
    assert child.wait(30) == 1
    assert child.last_error().startswith("the disk is full")
    assert "--resume goes on" in str(child.error())
