"""Two launchers never share a run's folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from lodestar.errors import FailedPrecondition
from lodestar.local.lock import locked

HOLDER = "import sys; from pathlib import Path; from lodestar.local.lock import locked\n" \
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # fmt: skip


def test_a_second_launcher_is_refused_by_pid_and_admitted_once_the_first_was_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FailedPrecondition, match=rf"another launcher \(pid {holder.pid}\)"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        pass


def test_a_folder_that_holds_the_lock_alone_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "mine"):
        assert (tmp_path / "runs" / "mine" / ".lock").exists()
    assert not (tmp_path / "runs").exists()
    with locked(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "mine" / "config.yaml").touch()
    assert (tmp_path / "runs" / "mine" / "config.yaml").exists()
