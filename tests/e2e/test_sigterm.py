"""SIGTERM on the learner in the middle of a run: it answers who waits, checkpoints, and its successor goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from lodestar.client import LearnerClient
from lodestar.errors import LodestarError, Terminated
from lodestar.layout import RunFolder
from lodestar.ledger import verify_ledger
from lodestar.local.serving import Serving
from lodestar.local.tiny import tiny_config, write_tiny_run
from lodestar.records import RunState, RunStatus

BATCH, STEPS = 16, 5
GRACE_SECONDS = 25.0


def test_a_terminated_learner_answers_checkpoints_and_its_successor_goes_on(tmp_path: Path) -> None:
    run = tiny_config(
        tmp_path,
        "terminated",
        ppo={"batch": BATCH, "steps": STEPS, "max_tokens": 48, "epochs": 1, "score": {"offset": "none"}},
        learner={"checkpoint_every": 100, "threads": 1},
    )
    folder = RunFolder(tmp_path / run.name)
    write_tiny_run(folder, hidden=48, layers=2, eos_bias=0.5)
    seen: list[RunStatus] = []
    paths: list[str] = []

    with Serving(run, folder) as serving:
        serving.start()
        address = serving.fleet.addresses("learner")[0]
        with LearnerClient(address) as client:

            def watch() -> None:
                seen.extend(client.watch())  # ends by itself, with the run's last status

            def checkpoint() -> None:
                paths.append(client.checkpoint(timeout=60))

            _until_step(client, 2)
            calls = [threading.Thread(target=watch), threading.Thread(target=checkpoint)]
            for call in calls:
                call.start()
            time.sleep(0.1)
            learner = serving.service("learner-0").child
            os.kill(learner.pid, signal.SIGTERM)
            assert learner.wait(GRACE_SECONDS) == Terminated.exit_code
            for call in calls:
                call.join(10)
                assert not call.is_alive()
        stopped = seen[-1]
        assert stopped.state is RunState.STOPPED
        assert 2 <= stopped.step < STEPS, "it should have been stopped on the way"
        assert len(paths) == 1
        assert (folder.checkpoints / f"step-{stopped.step:06d}").exists()
        assert not folder.policy.exists()
        serving.finish()
        assert serving.restarts == ["learner-0"]
    assert folder.policy.exists()
    assert verify_ledger(folder.ledger, tickets=BATCH, steps=STEPS) == []


def _until_step(client: LearnerClient, step: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.status().step >= step:
                return
        except LodestarError:  # not up yet
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
