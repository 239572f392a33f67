"""Oracle 3: what preference losses recover from ties, against the truth that made the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lodestar.preference.losses import bradley_terry, davidson
from tests.unit.preference.minimiser import minimum

ITEMS, PAIRS, REPLICATES = 5, 1000, 200
TRUTH = torch.tensor([0.0, 0.6, -0.4, 1.2, 0.3], dtype=torch.float64)
"""The first item's score is fixed at 0: only differences are identified."""


def votes_that_may_disagree(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Design [pairs, ITEMS − 1] and labels: two Bradley–Terry votes per pair, a tie where they disagree."""
    first = torch.randint(ITEMS, (PAIRS,), generator=generator)
    second = (first + torch.randint(1, ITEMS, (PAIRS,), generator=generator)) % ITEMS
    eye = torch.eye(ITEMS, dtype=torch.float64)
    design = eye[first] - eye[second]
    p = (design @ TRUTH).sigmoid()
    votes = torch.rand(2, PAIRS, generator=generator, dtype=torch.float64) < p
    return design[:, 1:], votes.double().mean(0)


def derivatives(losses: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivatives of losses that each depend on their own entry of x."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(losses(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return first.detach(), second


def fit(design: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method on the library's loss; scores and their sandwich variances."""
    scores = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(8):
        first, second = derivatives(lambda gaps: bradley_terry(gaps, labels), design @ scores)
        bread = torch.linalg.inv(design.T @ (second[:, None] * design))
        scores = scores - bread @ (design.T @ first)
    per_pair = first[:, None] * design
    return scores, (bread @ (per_pair.T @ per_pair) @ bread).diagonal()


def test_label_half_covers_the_truth_when_ties_are_votes_that_disagree() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(REPLICATES):
        scores, variances = fit(*votes_that_may_disagree(generator))
        covered.append((scores - TRUTH[1:]).abs() < 1.96 * variances.sqrt())
    rates = torch.stack(covered).double().mean(0)
    assert (rates >= 0.90).all(), rates
    assert (rates <= 0.99).all(), rates


def test_davidson_recovers_a_gap_that_label_half_shrinks() -> None:
    gap, ties, n = 2.0, 1.0, 60_000
    generator = torch.Generator().manual_seed(1)
    weights = torch.tensor([gap / 2, torch.log(torch.tensor(ties)).item(), -gap / 2], dtype=torch.float64)
    outcome = torch.multinomial(weights.softmax(0), n, replacement=True, generator=generator)
    labels = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)[outcome]
    half = minimum(lambda x: bradley_terry(x[0].expand(n), labels).mean(), 2)
    full = minimum(lambda x: davidson(x[0].expand(n), labels, x[1]).mean(), 2)
    assert abs(float(full[0]) - gap) < 0.05
    assert abs(float(full[1].exp()) - ties) < 0.05
    assert 1.2 < float(half[0]) < 1.4, "Bradley–Terry with label 0.5 is known to shrink Davidson's gaps"
