"""A policy server that computes otherwise than the learner gives no rollout: the run pauses, says why, and goes on.

The fault is one that weights' digests cannot show: the server reads a configuration with another epsilon of its norms.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lodestar.errors import RunPaused
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.rollouts.ledger import verify_ledger
from tests.e2e.conducting import Fault, Run, Watched

pytestmark = pytest.mark.timeout(180)
BATCH = 24


def test_a_run_whose_policy_servers_all_refuse_its_weights_pauses_and_says_why(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny", hidden=48, layers=2, eos_bias=0.5)
    ppo = {"steps": 3, "batch": BATCH, "max_tokens": 48, "epochs": 1, "score": {"offset": "none"}}
    rollout = {"in_flight": 3, "version_wait_seconds": 1.0}
    queue = {"heartbeat_seconds": 0.3, "claim_seconds": 1.0}
    learner = {"checkpoint_every": 1, "threads": 1}
    run = Run(tiny_config(tmp_path, "refused", ppo=ppo, rollout=rollout, queue=queue, learner=learner))
    sound: dict[Path, str] = {}

    def bend(crew: Watched) -> list[Fault]:
        def strike() -> None:
            path = Path(crew.member("policy-0").argument["task"]["model"]) / "config.json"
            sound[path] = path.read_text()
            config = json.loads(sound[path])
            config["rms_norm_eps"] = 0.1
            path.write_text(json.dumps(config))
            crew.kill("policy-0")()

        return [Fault(crew, 1, strike)]

    with pytest.raises(
        RunPaused, match=r"no policy server takes the weights of step \d .policy-0 on .* log-probs differ"
    ):
        run.conduct(bend)
    for path, text in sound.items():
        path.write_text(text)
    run.conduct()
    assert verify_ledger(run.figures("ledger.jsonl"), tickets=BATCH, steps=3) == []
