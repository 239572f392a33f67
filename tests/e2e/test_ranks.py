"""A learner of two processes, started by torchrun as the JobSet starts it, drives a whole run and resumes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lodestar.crew.work import argument_of
from lodestar.files import read_jsonl
from lodestar.local.board import Board, StageRow
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.recipe.plan import plan
from lodestar.recipe.store import Store
from lodestar.rollouts.ledger import verify_ledger
from tests.e2e.conducting import Watched

BATCH, STEPS = 16, 3


class Ranked(Watched):
    """Runs the stage under torchrun, two ranks of it, instead of in one process."""

    log: Path

    def work(self, step: Any, servers: Any) -> None:
        self._store.unfinished(step).mkdir(parents=True, exist_ok=True)
        listening = self._listening.model_copy(update={"linger_seconds": 0.0})
        argument = self._store.root / "argument.json"
        argument.write_text(
            json.dumps(argument_of(self._run, self._store, step.name, servers, self._endpoints, listening))
        )
        self._start("rollout", self._worker_tasks())
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        with self.log.open("a") as output:
            environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*words, "-m", "lodestar.crew.work", str(argument)],
                stdout=output,
                stderr=output,
                env=environment,
                timeout=110,
                check=False,
            )
        assert done.returncode == 0, self.log.read_text()[-4000:]


@pytest.mark.timeout(240)
def test_two_ranks_drive_a_run_to_its_end(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny", hidden=32, layers=2, eos_bias=0.5)
    run = tiny_config(
        tmp_path,
        "ranked",
        ppo={"batch": BATCH, "steps": STEPS, "max_tokens": 16, "epochs": 1, "score": {"offset": "none"}},
        learner={"checkpoint_every": 1, "threads": 1},
    )
    planned, store = plan(run), Store(tmp_path / run.name, run)
    (step,) = planned.steps
    figures = store.path("ppo/figures")
    with Ranked(run, planned, store, Board(run.name, [StageRow("ppo")])) as crew:
        crew.log = tmp_path / "torchrun.log"
        crew.work(step, crew.serve(step))
        rows = read_jsonl(figures / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert len({row["incarnation"] for row in rows}) == 1, "one learner, not two"
        assert verify_ledger(figures / "ledger.jsonl", tickets=BATCH, steps=STEPS) == []
        assert store.path("ppo/policy").exists()
        assert "learner-1" in crew.log.read_text()
        told = time.monotonic()
        crew.work(step, crew.serve(step))
        assert time.monotonic() - told < 100
    assert [row["step"] for row in read_jsonl(figures / "metrics.jsonl")] == list(range(1, STEPS + 1)), (
        "nothing was left"
    )
