"""A publication that is damaged, with digests that are right: refused by a server's probe, and rolled back.

Real processes: the publisher's weights server and a policy server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lodestar_services.learner import publisher as module
from lodestar_services.learner.publisher import WeightPublisher

from lodestar.client import PolicyClient, PolicyControlClient
from lodestar.config import LearnerConfig, LearnerTask, PpoConfig
from lodestar.errors import Unavailable
from lodestar.model.loading import load_causal_lm
from lodestar.records import SamplingParams, Scored, WeightVersion
from lodestar.rpc.channel import serving

SERVICE = "lodestar.v1.PolicyService"
SAMPLED = SamplingParams(8, seed=3, ignore_eos=True)
PROBED = (Scored((1, 5, 8, 9, 4, 7, 2), 4), Scored((3, 4), 1))


@pytest.fixture
def published(tiny_models: Any, tmp_path: Path) -> Iterator[tuple[WeightPublisher, str]]:
    made = WeightPublisher(
        tmp_path / "weights", run="test", incarnation="aa", tokenizer_hash="", section=LearnerConfig(), probed=PROBED
    )
    places = dict.fromkeys(("prompts", "state", "figures", "output"), tmp_path)
    task = LearnerTask(run="test", folder=tmp_path, ppo=PpoConfig(), policy="", reference="", **places)
    yield made, f"127.0.0.1:{made.serve(task)}"
    made.close()


def until(holds: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_damaged_weights_with_right_digests_are_refused_rolled_back_and_told(
    start_service: Any, tiny_models: Any, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, address = published
    live = load_causal_lm(tiny_models.sft)
    start = publisher.publish(live, 0).version
    server = start_service("policy", model=str(tiny_models.sft), endpoints={"weights": address})
    with PolicyClient(server.address) as policy, PolicyControlClient(server.address) as control:

        def sampled(
            purpose: Literal["serving", "training"], wanted: WeightVersion | None = None
        ) -> tuple[WeightVersion, tuple[int, ...]]:
            reply = policy.generate([1, 5], SAMPLED, purpose=purpose, min_version=wanted, wait_seconds=20)
            return reply.model.version, reply.completions[0].token_ids

        until(lambda: sampled("serving")[0] == start, "the start model was not taken for the version")
        before = sampled("training")
        assert publisher.refusals == {}

        says = module.probes_of(live, PROBED)
        with torch.no_grad():  # one tensor is wrong when it is written, after the probe was computed
            live.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        with monkeypatch.context() as patch:
            patch.setattr(module, "probes_of", lambda model, probed: says)
            publisher.publish(live, 1)
        until(lambda: publisher.refusals, "the refusal was not told")
        ((name, why),) = publisher.refusals.items()
        assert name.startswith("policy-0 on ")
        assert "weights of step 1: served log-probs differ from the learner's by" in why
        assert control.status().refusal == why
        assert sampled("serving") == before, "other callers go on with the version before"
        with pytest.raises(Unavailable, match="takes no rollouts while it refuses the learner's weights: weights of"):
            sampled("training")
        assert serving(server.address, SERVICE)
        assert not serving(server.address, f"{SERVICE}.Training")

        sound = publisher.publish(live, 2).version
        assert sampled("serving", sound)[0] == sound
        until(lambda: serving(server.address, f"{SERVICE}.Training"), "training is not served again")
        assert sampled("training")[0] == sound
        assert publisher.refusals == {}
