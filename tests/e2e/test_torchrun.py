"""The learner as two ranks under torchrun, between real services: killed in the middle, started again, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lodestar_services.learner.ledger import verify_ledger

from lodestar.config import dump
from lodestar.layout import RunFolder
from lodestar.local.serving import Serving
from lodestar.local.tiny import tiny_config, write_tiny_run

BATCH, STEPS = 16, 4


def _torchrun(serving: Serving, folder: RunFolder, log: Path) -> subprocess.Popen[bytes]:
    ends = serving.fleet.endpoints
    assert ends.weights is not None
    bin_ = Path(sys.executable).parent
    command = [
        *(bin_ / "torchrun", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        *("--no-python", bin_ / "lodestar", "serve", "learner", folder.config, "--resume", f"--run-dir={folder.root}"),
        *(f"--redis={ends.redis}", f"--policy={ends.policy[0]}", f"--reward={ends.reward[0]}"),
        *(f"--reference={ends.reference[0]}", f"--weights-port={ends.weights.rpartition(':')[2]}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)


def _steps(folder: RunFolder) -> list[int]:
    return (
        [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
        if folder.metrics.exists()
        else []
    )


@pytest.mark.timeout(170)
def test_two_ranks_drive_a_run_and_resume_it(tmp_path: Path) -> None:
    run = tiny_config(
        tmp_path,
        "ranks",
        ppo={"batch": BATCH, "steps": STEPS, "max_tokens": 16, "epochs": 2, "score": {"offset": "none"}},
        learner={"checkpoint_every": 1, "threads": 1},
    )
    folder, log = RunFolder(tmp_path / run.name), tmp_path / "torchrun.log"
    write_tiny_run(folder)
    folder.config.write_text(dump(run))
    with Serving(run, folder) as serving:
        for role in ("policy", "reward", "reference", "rollout"):
            serving.fleet.start(role)
        serving.fleet.wait_ready(("policy", "reward", "reference"))
        with _torchrun(serving, folder, log) as first:
            _until(lambda: len(_steps(folder)) >= 2, log)
            ranks = [p for p in psutil.Process(first.pid).children(recursive=True) if "serve" in p.cmdline()]
            assert len(ranks) == 2
            os.killpg(first.pid, signal.SIGKILL)
            for rank in ranks:
                rank.kill()
        with _torchrun(serving, folder, log) as second:
            assert second.wait(100) == 0, log.read_text()[-3000:]
    assert log.read_text().count("rank 1 of 2 takes part") == 2
    assert _steps(folder) == list(range(1, STEPS + 1))
    assert verify_ledger(folder.ledger, tickets=BATCH, steps=STEPS) == []
    assert folder.policy.exists()


def _until(condition: object, log: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
