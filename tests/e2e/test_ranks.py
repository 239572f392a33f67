"""A learner of two processes, started by torchrun as the JobSet starts it, drives a whole run and resumes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lodestar.layout import RunFolder
from lodestar.ledger import verify_ledger
from lodestar.local.serving import Serving
from lodestar.local.tiny import tiny_config, write_tiny_run

BATCH, STEPS = 16, 3


def torchrun(serving: Serving, config: Path, log: Path) -> int:
    """The exit code of two ranks that serve the learner."""
    endpoints = serving.fleet.endpoints
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    lodestar = Path(sys.executable).with_name("lodestar")
    words += [str(lodestar), "serve", "learner", str(config), "--resume", "--linger=0"]
    words += [f"--redis={serving.redis.url}", f"--port={serving.fleet.addresses('learner')[0].rpartition(':')[2]}"]
    words += [f"--weights-port={str(endpoints.weights).rpartition(':')[2]}"]
    for role in ("policy", "reward", "reference"):
        words += [f"--{role}={address}" for address in getattr(endpoints, role)]
    with log.open("a") as output:
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, stdout=output, stderr=output, env=environment, timeout=110, check=False)
    return done.returncode


@pytest.mark.timeout(240)
def test_two_ranks_drive_a_run_to_its_end_and_resume_it(tmp_path: Path) -> None:
    run = tiny_config(
        tmp_path,
        "ranked",
        ppo={"batch": BATCH, "steps": STEPS, "max_tokens": 16, "epochs": 1, "score": {"offset": "none"}},
        learner={"checkpoint_every": 1, "threads": 1},
    )
    folder, config, log = RunFolder(tmp_path / run.name), tmp_path / "run.yaml", tmp_path / "torchrun.log"
    write_tiny_run(folder, hidden=32, layers=2, eos_bias=0.5)
    config.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    with Serving(run, folder) as serving:
        for role in ("policy", "reward", "reference"):
            serving.fleet.start(role)
        serving.fleet.wait_ready(("policy", "reward", "reference"))
        serving.fleet.start("rollout")
        assert torchrun(serving, config, log) == 0, log.read_text()[-4000:]
        assert folder.policy.exists()
        rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert len({row["incarnation"] for row in rows}) == 1, "one learner, not two"
        assert verify_ledger(folder.ledger, tickets=BATCH, steps=STEPS) == []
        assert "learner-1" in log.read_text()
        told = time.monotonic()
        assert torchrun(serving, config, log) == 0, log.read_text()[-4000:]
        assert time.monotonic() - told < 100
    resumed = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert resumed == list(range(1, STEPS + 1)), "nothing was left to do"
