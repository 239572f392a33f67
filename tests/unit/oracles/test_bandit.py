"""Oracle 2: on a bandit with noisy payouts the policy must settle on the best arm."""

from __future__ import annotations

from dataclasses import replace

import torch
from lodestar_services.learner.trainer import Trainer

from lodestar.records import Rollout
from tests.unit.oracles.world import Responses, config, llama

ARMS = 10


def test_policy_puts_more_than_95_percent_on_the_best_arm() -> None:
    generator = torch.Generator().manual_seed(0)
    payouts = torch.randn(ARMS, generator=generator)
    responses = Responses([0], [(arm,) for arm in range(ARMS)])
    policy, critic = llama(ARMS, 0), llama(ARMS, 1, scalar=True)
    assert float(responses.log_distribution(policy).exp()[payouts.argmax()]) < 0.5
    ppo = config(steps=50, batch=64, learning_rate=1e-2, kl={"coefficient": 0.0}, critic={"learning_rate": 1e-2})
    trainer = Trainer(ppo, policy, critic, seed=0)
    reference = responses.token_logprobs(policy)
    for _ in range(ppo.steps):
        rollouts = responses.rollouts(policy, reference, payouts, 64, generator)
        trainer.step([_noisy(rollout, generator) for rollout in rollouts])
    assert float(responses.log_distribution(policy).exp()[payouts.argmax()]) > 0.95


def _noisy(rollout: Rollout, generator: torch.Generator) -> Rollout:
    """A payout is its arm's mean plus unit noise."""
    (sample,) = rollout.samples
    score = sample.score + float(torch.randn((), generator=generator))
    return replace(rollout, samples=(replace(sample, score=score),))
