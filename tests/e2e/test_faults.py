"""Processes are killed with SIGKILL in the middle of a step, with tickets settled and tickets out; the run goes on.

Real services, a real Redis, tiny random models. After each fault the ledger, joined over its lineage, must hold every
ticket exactly once.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lodestar.client import LearnerClient
from lodestar.config import RunConfig
from lodestar.errors import LodestarError, NonFinite
from lodestar.layout import RunFolder
from lodestar.ledger import read_ledger, verify_ledger
from lodestar.local.serving import Serving
from lodestar.local.tiny import tiny_config, write_tiny_run

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


def prepared(run: RunConfig) -> RunFolder:
    folder = RunFolder(Path(run.runs_dir) / run.name)
    write_tiny_run(folder, hidden=48, layers=2, eos_bias=0.5)
    return folder


class Fault:
    """Strikes once a step is partly settled; remembers that it did."""

    def __init__(self, serving: Serving, step: int, strike: Callable[[], None]) -> None:
        self._client = LearnerClient(serving.fleet.addresses("learner")[0], timeout=2.0)
        self._step = step
        self._strike = strike
        self.struck = False

    def look(self) -> None:
        if self.struck:
            return
        try:
            status = self._client.status()
        except LodestarError:  # not up yet
            return
        if status.step >= self._step and 0 < status.settled < status.batch:
            self._strike()
            self.struck = True
            self._client.close()


def kill(serving: Serving, name: str) -> Callable[[], None]:
    return lambda: os.kill(serving.service(name).child.pid, signal.SIGKILL)


def finish(serving: Serving, *faults: Fault) -> None:
    """Runs to the end; every fault must have struck on the way."""

    def look() -> None:
        for fault in faults:
            if not fault.struck:
                fault.look()
                break  # one after another

    serving.finish(look)
    assert [fault.struck for fault in faults] == [True] * len(faults)


def assert_every_ticket_once(folder: RunFolder, steps: int) -> None:
    assert verify_ledger(folder.ledger, tickets=BATCH, steps=steps) == []
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert (folder.policy / "model.safetensors").exists()


def curve(folder: RunFolder) -> list[dict[str, object]]:
    """metrics.jsonl without what a clock or a dice has a hand in."""
    clocks = ("time", "seconds", "tokens_per_second", "incarnation", "tickets")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


def test_a_run_survives_the_death_of_each_model_server_and_of_the_worker(tmp_path):
    run = config(tmp_path, "servers", steps=6)
    folder = prepared(run)
    victims = ["rollout-0", "policy-0", "reward-0", "reference-0"]
    with Serving(run, folder) as serving:
        serving.start()
        finish(serving, *(Fault(serving, step, kill(serving, name)) for step, name in enumerate(victims)))
        assert serving.restarts == victims
    assert_every_ticket_once(folder, steps=6)


def test_a_run_survives_a_redis_that_comes_back_empty_and_one_that_lost_its_last_second(tmp_path):
    run = config(tmp_path, "redis", steps=4, max_staleness=1)
    folder = prepared(run)
    with Serving(run, folder) as serving:

        def restart_empty() -> None:
            serving.redis.kill()
            for path in (folder.root / "redis").rglob("*.aof*"):
                path.unlink(missing_ok=True)
            serving.redis.start()

        def restart_cut_short() -> None:
            serving.redis.kill()
            _cut(folder.root / "redis", share=0.3)
            serving.redis.start()

        serving.start()
        finish(serving, Fault(serving, 0, restart_empty), Fault(serving, 2, restart_cut_short))
    assert_every_ticket_once(folder, steps=4)


def _cut(directory: Path, share: float) -> None:
    """Cuts the end off the append-only file, at any byte: what a crash within a second of the last fsync leaves."""
    newest = max((path for path in directory.rglob("*.aof*") if "manifest" not in path.name), key=_size)
    os.truncate(newest, int(_size(newest) * (1 - share)))


def _size(path: Path) -> int:
    return path.stat().st_size


def test_a_killed_learner_resumes_bit_equal_from_a_checkpoint_several_steps_old(tmp_path):
    whole, broken = (config(tmp_path, name, steps=7, deterministic=True) for name in ("whole", "broken"))
    folders = [prepared(run) for run in (whole, broken)]
    with Serving(whole, folders[0]) as serving:
        serving.start()
        serving.finish()
    with Serving(broken, folders[1]) as serving:
        serving.start()
        finish(serving, Fault(serving, 5, kill(serving, "learner-0")))  # the last checkpoint is step 3's
        assert serving.restarts == ["learner-0"]
    assert_every_ticket_once(folders[1], steps=7)
    assert curve(folders[1]) == curve(folders[0])
    assert (folders[1].policy / "model.safetensors").read_bytes() == (
        folders[0].policy / "model.safetensors"
    ).read_bytes()
    by_step = {entry.step: entry.incarnation for entry in read_ledger(folders[1].ledger)}
    assert len({by_step[step] for step in range(3)}) == 1
    assert len({by_step[step] for step in range(3, 7)}) == 1
    assert by_step[0] != by_step[3]


def test_a_resumed_run_refuses_what_changed(tmp_path):
    run = config(tmp_path, "changed", steps=2)
    folder = prepared(run)
    with Serving(run, folder) as serving:
        serving.start()
        serving.finish()
    changed = run.model_copy(update={"ppo": run.ppo.model_copy(update={"clip": 0.3})})
    (folder.reward_model / "note.txt").write_text("retrained")
    with Serving(changed, folder) as serving:
        serving.start(resume=True)
        with pytest.raises(LodestarError, match=r"config ppo.clip \(0.2 → 0.3\), reward model \("):
            _finish_within(serving, 60)


def test_a_loss_that_is_no_number_ends_the_run_with_its_batch_and_the_last_good_state_kept(tmp_path):
    run = config(tmp_path, "overflow", steps=4, epochs=2, learning_rate=1e30)
    folder = prepared(run)
    with Serving(run, folder) as serving:
        serving.start()
        with pytest.raises(NonFinite, match=r"step 0 was undone: .* Its rollouts are in .*step-000000\.json"):
            _finish_within(serving, 60)
        assert serving.service("learner-0").child.exit_code == 3
    assert len(json.loads((folder.root / "failures" / "step-000000.json").read_text())) == BATCH
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000000"]


def _finish_within(serving: Serving, seconds: float) -> None:
    deadline = time.monotonic() + seconds

    def too_late() -> None:
        assert time.monotonic() < deadline, "the learner neither ended nor failed"

    serving.finish(too_late)
