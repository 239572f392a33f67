"""SIGTERM on the learner in the middle of a run: it answers who waits, checkpoints, and its successor goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from lodestar.client import LearnerClient
from lodestar.errors import Terminated
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.records import RunState, RunStatus
from lodestar.rollouts.ledger import verify_ledger
from tests.e2e.conducting import Fault, Run, Watched

BATCH, STEPS = 16, 12
GRACE_SECONDS = 25.0


def test_a_terminated_learner_answers_checkpoints_and_its_successor_goes_on(tmp_path: Path) -> None:
    run = Run(
        tiny_config(
            tmp_path,
            "terminated",
            ppo={"batch": BATCH, "steps": STEPS, "max_tokens": 48, "epochs": 1, "score": {"offset": "none"}},
            learner={"checkpoint_every": 100, "threads": 1},
        )
    )
    write_tiny_models(tmp_path / "tiny", hidden=48, layers=2, eos_bias=0.5)
    seen: list[RunStatus] = []
    paths: list[str] = []

    def faults(crew: Watched) -> list[Fault]:
        def terminate() -> None:
            with LearnerClient(crew.learner) as client:
                calls = [
                    threading.Thread(target=lambda: seen.extend(client.watch())),  # ends with the run's last status
                    threading.Thread(target=lambda: paths.append(client.checkpoint(timeout=60))),
                ]
                for call in calls:
                    call.start()
                time.sleep(0.1)
                learner = crew.member("learner-0").child
                os.kill(learner.pid, signal.SIGTERM)
                assert learner.wait(GRACE_SECONDS) == Terminated.exit_code
                for call in calls:
                    call.join(10)
                    assert not call.is_alive()
            stopped = seen[-1]
            assert stopped.state is RunState.STOPPED
            assert 2 <= stopped.step < STEPS, "it should have been stopped on the way"
            assert len(paths) == 1
            assert (run.unfinished / "checkpoints" / f"step-{stopped.step:06d}").exists()
            assert not run.policy.exists()

        return [Fault(crew, 2, terminate)]

    assert run.conduct(faults) == {"learner-0": 1}
    assert run.policy.exists()
    assert verify_ledger(run.figures("ledger.jsonl"), tickets=BATCH, steps=STEPS) == []
