"""Oracle 1: with the KL in the reward, PPO's optimum is π* ∝ π₀·exp(r/β), and the trainer must find it."""

from __future__ import annotations

import pytest
import torch
from lodestar_services.learner import gradients as gradients_module
from lodestar_services.learner import trainer as trainer_module
from lodestar_services.learner.trainer import Trainer

from lodestar.model import packed
from lodestar.ppo import rewards as rewards_module
from tests.unit.oracles.world import (
    Responses,
    config,
    divergence,
    llama,
    sequences_of,
    tables,
    train,
)

BETA = 0.5
ALL = sequences_of([0, 1, 2, 3], longest=3)


def one_token_divergence(seed: int) -> float:
    """KL(π‖π*) after PPO on one token of 8, with a Llama."""
    responses = Responses([0], [(symbol,) for symbol in range(8)])
    rewards = 1.5 * torch.randn(8, generator=torch.Generator().manual_seed(seed))
    policy = llama(8, seed)
    optimum = responses.optimum(responses.log_distribution(policy), rewards, BETA)
    ppo = config(steps=60, batch=128, learning_rate=1e-2, kl={"coefficient": BETA}, critic={"learning_rate": 1e-2})
    trainer = Trainer(ppo, policy, llama(8, seed + 100, scalar=True), seed=seed)
    before = divergence(responses.log_distribution(policy), optimum)
    assert before > 0.3, "the start policy must be far from the optimum"
    train(trainer, responses, rewards, 128, seed)
    return divergence(responses.log_distribution(policy), optimum)


def sequence_divergence(seed: int) -> float:
    """KL(π‖π*) after PPO on 4 symbols with EOS, length ≤ 3, a random reward per sequence, λ = 0.95."""
    responses = Responses([0], ALL)
    rewards = torch.randn(len(ALL), generator=torch.Generator().manual_seed(seed))
    policy, critic = tables(4, 4, seed)
    optimum = responses.optimum(responses.log_distribution(policy), rewards, BETA)
    ppo = config(
        steps=60, batch=192, learning_rate=0.1, kl={"coefficient": BETA}, critic={"learning_rate": 0.1}, lam=0.95
    )
    train(Trainer(ppo, policy, critic, seed=seed), responses, rewards, 192, seed)
    return divergence(responses.log_distribution(policy), optimum)


def test_one_token_policy_reaches_the_optimum() -> None:
    assert one_token_divergence(0) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_one_token_policy_reaches_the_optimum_for_more_seeds(seed: int) -> None:
    assert one_token_divergence(seed) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_sequence_policy_reaches_the_optimum(seed: int) -> None:
    assert sequence_divergence(seed) < 0.02


def test_oracle_sees_a_score_on_the_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    first = lambda lengths_B: lengths_B.cumsum(0) - lengths_B  # noqa: E731
    monkeypatch.setattr(rewards_module, "last_tokens", first)
    assert sequence_divergence(0) > 0.1


def test_oracle_sees_a_kl_shifted_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewards_module.token_rewards

    def shifted(proximal_R, reference_R, scores_B, lengths_B, *, kl_coefficient):  # type: ignore[no-untyped-def]
        return right(proximal_R, reference_R.roll(1), scores_B, lengths_B, kl_coefficient=kl_coefficient)

    monkeypatch.setattr(trainer_module, "token_rewards", shifted)
    assert sequence_divergence(0) > 0.1


def test_oracle_sees_a_value_read_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(critic, batch):  # type: ignore[no-untyped-def]
        return packed.scalar_head(critic)(packed.hidden_states(critic, batch)[batch.states_R + 1])[:, 0]

    for module in (trainer_module, gradients_module):
        monkeypatch.setattr(module, "token_values", late)
    assert sequence_divergence(0) > 0.1
