"""Oracle 4: DPO on exact preferences and RLHF have the same optimum, by the stage's own objective and its own fit."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lodestar.config import ModelConfig
from lodestar.config.dpo import DpoConfig
from lodestar.records import Choice, Scored
from lodestar.train.dpo import Compared, DpoObjective
from lodestar.train.fit import fit
from lodestar.train.implied import Trainee
from lodestar.train.progress import Silent
from tests.unit.oracles.world import Responses, divergence, llama, sequences_of, tables

BETA = 0.5


def world(policy: torch.nn.Module, responses: Responses, seed: int) -> tuple[Compared, Tensor, Tensor]:
    """All responses to one prompt with σ(r_i − r_j) as the label of every pair; r, and log π₀."""
    rewards = torch.randn(len(responses.all), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = responses.log_distribution(policy)
    rows = tuple(Scored(responses.prompt + one, len(responses.prompt)) for one in responses.all)
    labels = ((i, j, float((rewards[i] - rewards[j]).sigmoid())) for i, j in combinations(range(len(rows)), 2))
    return Compared(rows, tuple(Choice(*one) for one in labels), tuple(start.tolist())), rewards, start


def errors(policy: torch.nn.Module, responses: Responses, rewards: Tensor, start: Tensor) -> tuple[float, float]:
    """How far the implied reward is from r, up to a constant, and KL(π‖π*) to the optimum of RLHF."""
    log_p = responses.log_distribution(policy)
    gap = BETA * (log_p - start) - rewards
    return float((gap - gap.mean()).abs().max()), divergence(log_p, responses.optimum(start, rewards, BETA))


def test_exact_soft_labels_give_the_reward_back_and_the_optimum_of_rlhf() -> None:
    responses = Responses([0], sequences_of([0, 1, 2, 3], longest=3))
    policy, _ = tables(4, 4, seed=0)
    policy = policy.double()
    group, rewards, start = world(policy, responses, 0)
    config = DpoConfig(beta=BETA)
    objective, trainee = DpoObjective([group], [group], config, ModelConfig()), Trainee(policy, config)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=400, tolerance_grad=1e-10, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss(trainee, [0])
        loss.backward()
        return loss

    optimizer.step(closure)
    implied, apart = errors(policy, responses, rewards, start)
    assert implied < 1e-3
    assert apart < 1e-5


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_stages_own_training_reaches_it_with_a_shared_prompt(seed: int, tmp_path: Path) -> None:
    """A Llama, one token of 8, by AdamW with warm-up and decay as any run."""
    responses = Responses([0, 5], [(token,) for token in range(8)])
    policy = llama(8, seed)
    group, rewards, start = world(policy, responses, seed)
    rows: list[Any] = [group] * 100
    told = {"beta": BETA, "epochs": 4, "batch_tokens": 24, "learning_rate": 1e-2, "evaluations_per_epoch": 1}
    config = DpoConfig.model_validate(told | {"weight_decay": 0.0, "patience": 100})
    objective = DpoObjective(rows, [group], config, ModelConfig())
    identity = {"data": "oracle"}
    fit(
        "dpo",
        Trainee(policy, config),
        objective,
        config,
        seed=seed,
        state_file=tmp_path / "state.pt",
        identity=identity,
        progress=Silent(),
    )
    implied, apart = errors(policy, responses, rewards, start)
    assert implied < 0.05
    assert apart < 0.01


@pytest.mark.parametrize("fault", ["order", "reference", "end"])
def test_the_oracle_sees_what_is_wrong(fault: str) -> None:
    """Labels the wrong way round, a reference that is forgotten, and completions short of their last token."""
    responses = Responses([0], sequences_of([0, 1, 2, 3], longest=3))
    policy, _ = tables(4, 4, seed=0)
    policy = policy.double()
    group, rewards, start = world(policy, responses, 0)
    wrong = {
        "order": lambda: Compared(
            group.rows, tuple(Choice(c.second, c.first, c.label) for c in group.choices), group.reference
        ),
        "reference": lambda: Compared(group.rows, group.choices, (0.0,) * len(group.rows)),
        "end": lambda: Compared(
            tuple(Scored(r.token_ids[:-1] if len(r.token_ids) > 2 else r.token_ids, 1) for r in group.rows),
            group.choices,
            group.reference,
        ),
    }[fault]()  # fmt: skip
    config = DpoConfig(beta=BETA)
    objective, trainee = DpoObjective([wrong], [wrong], config, ModelConfig()), Trainee(policy, config)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.loss(trainee, [0])
        loss.backward()
        return loss

    optimizer.step(closure)
    implied, apart = errors(policy, responses, rewards, start)
    assert implied > 0.1
    assert apart > 0.1
