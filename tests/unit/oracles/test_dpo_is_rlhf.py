"""Oracle 4: DPO on exact preferences and RLHF have the same optimum."""

from __future__ import annotations

import torch

from lodestar.model.packed import response_logprobs
from lodestar.preference.losses import dpo
from tests.unit.oracles.world import Responses, divergence, sequences_of, tables

BETA = 0.5


def test_dpo_with_exact_soft_labels_reaches_the_optimum_of_rlhf() -> None:
    responses = Responses([0], sequences_of([0, 1, 2, 3], longest=3))
    count = len(responses.all)
    rewards = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, _ = tables(4, 4, seed=0)
    policy = policy.double()
    start = responses.log_distribution(policy)
    optimum = responses.optimum(start, rewards, BETA)
    first, second = torch.triu_indices(count, count, offset=1)
    labels = (rewards[first] - rewards[second]).sigmoid()
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=400, tolerance_grad=1e-10, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logprobs_R, _ = response_logprobs(policy, responses.packed, temperature=1.0)
        log_p = torch.zeros(count, dtype=torch.float64).index_add(0, responses.owner, logprobs_R)
        loss = dpo(log_p[first], log_p[second], start[first], start[second], labels, beta=BETA).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    log_p = responses.log_distribution(policy)
    implied = BETA * (log_p - start)
    error = (implied - rewards) - (implied - rewards).mean()
    assert float(error.abs().max()) < 1e-3
    assert divergence(log_p, optimum) < 1e-5
