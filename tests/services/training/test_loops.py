"""Callers' own loops over gRPC against a real process: they reach what the mathematics says."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from lodestar.client import TrainingClient
from lodestar.records import Datum, Lora

LORA = Lora(rank=8, seed=3)
EITHER = pytest.mark.parametrize("lora", [None, LORA], ids=["full weights", "LoRA"])


@EITHER
def test_a_supervised_loop_brings_the_loss_down_to_the_entropy_of_the_text(
    training: TrainingClient, lora: Lora | None
) -> None:
    """After t5 comes t6 or t7, one in four times t7, and then always the end: no model can do better than H(1/4)."""
    name = training.create_model(lora=lora).model.name
    rows = [Datum((4, 5, word), (5, word, 1), weights=(0.0, 1.0, 1.0)) for word in (6, 6, 6, 7)]
    for _ in range(60):
        loss = training.forward_backward(name, rows, "cross_entropy").loss / len(rows)
        training.optim_step(name, 0.02)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy - 1e-3 < loss < entropy + 0.02
    training.delete_model(name)


@EITHER
@pytest.mark.parametrize("loss", ["importance_sampling", "ppo"])
def test_a_policy_gradient_loop_finds_the_best_arm_of_a_bandit(
    training: TrainingClient, lora: Lora | None, loss: str
) -> None:
    """Eight arms t8 … t15; the sampler pays each draw's arm, and the last pays best."""
    name = training.create_model(lora=lora).model.name
    pay, rng = {arm: (arm - 8) / 7 for arm in range(8, 16)}, random.Random(0)
    share = 0.0
    for step in range(60):
        sampled = training.sample((4, 5), model_id=name, seed=step, max_tokens=1, n=32, logprobs=True)
        draws = [(one.token_ids[0], one.logprobs[0]) for one in sampled.samples]
        rewards = [pay.get(token, 0.0) + rng.gauss(0.0, 0.05) for token, _ in draws]
        mean = sum(rewards) / len(rewards)
        data = [
            Datum((4, 5), (5, token), logprobs=(0.0, logprob), advantages=(0.0, (reward - mean) / len(draws)))
            for (token, logprob), reward in zip(draws, rewards, strict=True)
        ]
        training.forward_backward(name, data, loss)
        training.optim_step(name, 0.02)
        share = _probability(training, name, 15)
        if share > 0.96:
            break
    assert share > 0.95
    training.delete_model(name)


def _probability(training: TrainingClient, name: str, token: int) -> float:
    asked = training.forward_backward(name, [Datum((4, 5), (5, token))], "cross_entropy", forward_only=True)
    return math.exp(asked.sequences[0][1])


@EITHER
def test_pairs_teach_a_preference(training: TrainingClient, lora: Lora | None) -> None:
    name = training.create_model(lora=lora).model.name
    pair = [Datum((4, 5, word), (5, word, 1), weights=(0.0, 1.0, 1.0)) for word in (6, 7)]
    reference = training.forward_backward(name, pair, "cross_entropy", forward_only=True).sequences
    data: list[Any] = [
        Datum(one.token_ids, one.targets, one.weights, logprobs=known)
        for one, known in zip(pair, reference, strict=True)
    ]
    first = training.forward_backward(name, data, "dpo", {"beta": 0.5})
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    for _ in range(30):
        training.optim_step(name, 0.01)
        last = training.forward_backward(name, data, "dpo", {"beta": 0.5})
    assert last.loss < 0.1
    assert last.metrics == {"pairs": 1.0, "preferred": 1.0}
    training.delete_model(name)
