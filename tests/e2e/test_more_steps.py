"""PPO goes on when more steps are asked for: of a run that is over, and of one that was stopped half-way."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestar.config import RunConfig
from lodestar.files import digest
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.rollouts.ledger import verify_ledger
from tests.e2e.conducting import Run

BATCH = 8


def config(root: Path, steps: int) -> RunConfig:
    ppo = {"steps": steps, "batch": BATCH, "max_tokens": 8, "epochs": 1, "score": {"offset": "none"}}
    return tiny_config(root, "mine", ppo=ppo, learner={"checkpoint_every": 10, "threads": 1})


@pytest.mark.timeout(240)
def test_ppo_goes_on_from_its_last_checkpoint_when_more_steps_are_asked_for(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny")
    first = Run(config(tmp_path, 2))
    first.conduct()
    curve, policy = first.curve(), digest(first.policy)
    assert [path.name for path in (tmp_path / "mine" / "ppo" / "kept" / "checkpoints").iterdir()] == ["step-000002"]

    more = Run(config(tmp_path, 4))
    more.conduct()
    assert more.curve()[:2] == curve, "what was done is not done again"
    assert [row["step"] for row in more.curve()] == [1, 2, 3, 4]
    assert more.curve()[2]["learning_rate"] == pytest.approx(0.5 * curve[0]["learning_rate"]), "half of four are over"
    assert digest(more.policy) != policy
    assert verify_ledger(more.figures("ledger.jsonl"), tickets=BATCH, steps=4) == []
    assert not more.unfinished.exists()
