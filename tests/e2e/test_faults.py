"""Processes are killed with SIGKILL in the middle of a step, with tickets settled and tickets out; the run goes on.

Real services, a real Redis, tiny random models. After each fault the ledger, joined over its lineage, must hold every
ticket exactly once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lodestar.config import RunConfig
from lodestar.errors import LodestarError, NonFinite, ResumeRefused
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.rollouts.ledger import read_ledger, verify_ledger
from tests.e2e.conducting import Fault, Run, Watched

pytestmark = pytest.mark.timeout(180)
BATCH = 24


def config(root: Path, name: str, *, deterministic: bool = False, **ppo: object) -> RunConfig:
    """Few tickets in flight, so that a step is partly settled for a while."""
    return tiny_config(
        root,
        name,
        deterministic=deterministic,
        ppo={"batch": BATCH, "max_tokens": 48, "epochs": 1, "score": {"offset": "none"}} | ppo,
        rollout={"in_flight": 3, "version_wait_seconds": 1.0},
        queue={"heartbeat_seconds": 0.3, "claim_seconds": 1.0, "reconcile_seconds": 3.0},
        learner={"checkpoint_every": 3, "threads": 1},
    )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_tiny_models(tmp_path / "tiny", hidden=48, layers=2, eos_bias=0.5)
    return tmp_path


def assert_every_ticket_once(run: Run, steps: int) -> None:
    assert verify_ledger(run.figures("ledger.jsonl"), tickets=BATCH, steps=steps) == []


def test_a_run_survives_the_death_of_each_model_server_and_of_the_worker(models):
    run = Run(config(models, "servers", steps=6))
    victims = ["rollout-0", "policy-0", "reward-0", "reference-0"]
    restarts = run.conduct(lambda crew: [Fault(crew, step, crew.kill(name)) for step, name in enumerate(victims)])
    assert restarts == dict.fromkeys(victims, 1)
    assert_every_ticket_once(run, steps=6)


def test_a_run_survives_a_redis_that_comes_back_empty_and_one_that_lost_its_last_second(models):
    run = Run(config(models, "redis", steps=4, max_staleness=1))

    def faults(crew: Watched) -> list[Fault]:
        def restart_empty() -> None:
            assert crew.redis is not None
            crew.redis.kill()
            for path in (run.root / "redis").rglob("*.aof*"):
                path.unlink(missing_ok=True)
            crew.redis.start()

        def restart_cut_short() -> None:
            assert crew.redis is not None
            crew.redis.kill()
            _cut(run.root / "redis", share=0.3)
            crew.redis.start()

        return [Fault(crew, 0, restart_empty), Fault(crew, 2, restart_cut_short)]

    run.conduct(faults)
    assert_every_ticket_once(run, steps=4)


def _cut(directory: Path, share: float) -> None:
    """Cuts the end off the append-only file, at any byte: what a crash within a second of the last fsync leaves."""
    newest = max((path for path in directory.rglob("*.aof*") if "manifest" not in path.name), key=_size)
    os.truncate(newest, int(_size(newest) * (1 - share)))


def _size(path: Path) -> int:
    return path.stat().st_size


def test_a_killed_learner_resumes_bit_equal_from_a_checkpoint_several_steps_old(models):
    whole, broken = (Run(config(models, name, steps=7, deterministic=True)) for name in ("whole", "broken"))
    whole.conduct()
    # The last checkpoint is step 3's.
    assert broken.conduct(lambda crew: [Fault(crew, 5, crew.kill("learner-0"))]) == {"learner-0": 1}
    assert_every_ticket_once(broken, steps=7)
    assert broken.curve() == whole.curve()
    assert (broken.policy / "model.safetensors").read_bytes() == (whole.policy / "model.safetensors").read_bytes()
    by_step = {entry.step: entry.incarnation for entry in read_ledger(broken.figures("ledger.jsonl"))}
    assert len({by_step[step] for step in range(3)}) == 1
    assert len({by_step[step] for step in range(3, 7)}) == 1
    assert by_step[0] != by_step[3]


class Enough(Exception):
    """The test has seen what it came for."""


def test_a_resumed_run_refuses_what_changed(models):
    run = Run(config(models, "changed", steps=6))

    def stop() -> None:
        raise Enough

    with pytest.raises(Enough):
        run.conduct(lambda crew: [Fault(crew, 1, stop)])
    changed = Run(config(models, "changed", steps=6, clip=0.3))
    with pytest.raises(ResumeRefused, match=r"ppo\.clip \(was 0\.2, is 0\.3\).*--from ppo makes ppo anew"):
        changed.conduct()
    (models / "tiny" / "reward" / "note.txt").write_text("retrained")
    with pytest.raises(LodestarError, match=r"reward, the run's reward model \("):
        run.conduct()


def test_a_loss_that_is_no_number_ends_the_run_with_its_batch_and_the_last_good_state_kept(models):
    run = Run(config(models, "overflow", steps=4, epochs=2, learning_rate=1e30))
    began = time.monotonic()
    with pytest.raises(NonFinite, match=r"step 0 failed half-way: .* Its rollouts are in .*step-000000\.json"):
        run.conduct()
    assert time.monotonic() - began < 100
    assert len(json.loads((run.unfinished / "failures" / "step-000000.json").read_text())["rollouts"]) == BATCH
    assert [path.name for path in (run.unfinished / "checkpoints").iterdir()] == ["step-000000"]
