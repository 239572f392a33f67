"""Every loss against a slow, obvious float64 version, and against closed forms where there are some."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from lodestar.preference.losses import (
    approval,
    bradley_terry,
    centring,
    davidson,
    kto,
    kto_reference_point,
    mean_per_prompt,
    plackett_luce,
    segment_sums,
)
from lodestar.preference.ratings import (
    cumulative_link,
    free_cutpoints,
    masked_mean,
    regression,
    rising_cutpoints,
)
from tests.unit.preference.minimiser import minimum


def _double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_with_margins_and_soft_labels_is_its_equation() -> None:
    rows = [(d, y, m) for d in (-3.0, 0.0, 0.7) for y in (0.0, 0.3, 0.5, 1.0) for m in (0.0, 1.5)]
    slow = [-(y * math.log(_sigmoid(d - m)) + (1 - y) * math.log(_sigmoid(-d - m))) for d, y, m in rows]
    d, y, m = (_double(*column) for column in zip(*rows, strict=True))
    assert bradley_terry(d, y, m).tolist() == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(7, 2, 1), (5, 5, 3), (1, 8, 4)])
def test_bradley_terry_with_ties_on_two_items_has_its_closed_form(wins: int, ties: int, losses: int) -> None:
    """A tie is half a win for each: d = log((w + t/2) / (l + t/2))."""
    labels = _double(*[1.0] * wins, *[0.5] * ties, *[0.0] * losses)
    fitted = minimum(lambda x: bradley_terry(x[0].expand(len(labels)), labels).mean(), 1)
    assert float(fitted[0]) == pytest.approx(math.log((wins + ties / 2) / (losses + ties / 2)), abs=1e-6)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(7, 2, 1), (5, 5, 3)])
def test_davidson_on_two_items_has_its_closed_form(wins: int, ties: int, losses: int) -> None:
    """d = log(w / l) and ν = t / √(w·l)."""
    labels = _double(*[1.0] * wins, *[0.5] * ties, *[0.0] * losses)
    fitted = minimum(lambda x: davidson(x[0].expand(len(labels)), labels, x[1]).mean(), 2)
    assert float(fitted[0]) == pytest.approx(math.log(wins / losses), abs=1e-5)
    assert float(fitted[1].exp()) == pytest.approx(ties / math.sqrt(wins * losses), abs=1e-5)


@pytest.mark.parametrize(("ties", "fitted"), [(0.5, 1.57), (1.0, 1.31), (2.0, 1.00)])
def test_label_half_shrinks_davidsons_gap_as_its_docstring_says(ties: float, fitted: float) -> None:
    win, tie, loss = (_double(1.0, math.log(ties), -1.0)).softmax(0)
    label = win + tie / 2
    found = minimum(lambda x: bradley_terry(x, label.expand(1)).mean(), 1)
    assert float(found[0]) == pytest.approx(fitted, abs=5e-3)
    assert float(win + tie + loss) == pytest.approx(1.0)


@pytest.mark.parametrize("gap", [0.5, 2.0])
def test_davidson_doubles_the_gap_of_votes_that_disagree(gap: float) -> None:
    p = _sigmoid(gap)
    shares, labels = _double(p * p, 2 * p * (1 - p), (1 - p) ** 2), _double(1.0, 0.5, 0.0)
    found = minimum(lambda x: (shares * davidson(x[0].expand(3), labels, x[1])).sum(), 2)
    assert float(found[0]) == pytest.approx(2 * gap, abs=1e-4)
    assert float(found[1].exp()) == pytest.approx(2.0, abs=1e-4)


def _slow_plackett_luce(scores: list[float], places: list[int]) -> float:
    total = 0.0
    for i, place in enumerate(places):
        rivals = [math.exp(s) for s, other in zip(scores, places, strict=True) if other >= place]
        total += math.log(sum(rivals)) - scores[i]
    return total


def test_plackett_luce_is_its_equation_with_ties_and_padding() -> None:
    rng = random.Random(0)
    groups = []
    for count in (2, 3, 5, 5):
        scores = [rng.gauss(0, 2) for _ in range(count)]
        groups.append((scores, [rng.randrange(count) for _ in range(count)]))
    width = max(len(scores) for scores, _ in groups)
    scores_GK = torch.tensor(
        [s + [99.0] * (width - len(s)) for s, _ in groups], dtype=torch.float64, requires_grad=True
    )
    places_GK = torch.tensor([p + [-1] * (width - len(p)) for _, p in groups])
    losses = plackett_luce(scores_GK, places_GK)
    assert losses.tolist() == pytest.approx([_slow_plackett_luce(*group) for group in groups], abs=1e-12)
    losses.sum().backward()
    assert torch.isfinite(scores_GK.grad).all()
    assert (scores_GK.grad[places_GK < 0] == 0).all()


def test_plackett_luce_is_a_distribution_over_rankings() -> None:
    scores = _double(0.3, -1.0, 2.0, 0.0)
    orders = list(itertools.permutations(range(4)))
    total = sum(math.exp(-float(plackett_luce(scores[None], torch.tensor([order])))) for order in orders)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    scores_GK = torch.randn(6, 2, dtype=torch.float64)
    places_GK = torch.tensor([[0, 1], [1, 0]] * 3)
    expected = bradley_terry(scores_GK[:, 0] - scores_GK[:, 1], (places_GK[:, 0] == 0).double())
    torch.testing.assert_close(plackett_luce(scores_GK, places_GK), expected)
    tied = plackett_luce(scores_GK, torch.zeros(6, 2, dtype=torch.int64))
    torch.testing.assert_close(tied, 2 * bradley_terry(scores_GK[:, 0] - scores_GK[:, 1], _double(*[0.5] * 6)))


def test_a_prompt_counts_once_however_many_pairs_it_has() -> None:
    losses = _double(1.0, 2.0, 6.0, 4.0)
    prompts = torch.tensor([0, 0, 0, 2])
    assert float(mean_per_prompt(losses, prompts, _double(1.0, 1.0, 1.0))) == pytest.approx((3.0 + 4.0) / 2)
    assert float(mean_per_prompt(losses, prompts, _double(3.0, 9.0, 1.0))) == pytest.approx((3 * 3.0 + 4.0) / 4)
    assert float(mean_per_prompt(losses[:0], prompts[:0], _double(1.0))) == 0.0


def test_centring_is_the_squared_sum() -> None:
    assert centring(_double(1.5, -2.0)).tolist() == [2.25, 4.0]


def test_segments_sum_their_tokens() -> None:
    rewards = torch.arange(6.0, dtype=torch.float64, requires_grad=True)
    sums = segment_sums(rewards, (1, 0, 3, 2))
    assert sums.tolist() == [0.0, 0.0, 6.0, 9.0]
    sums[2].backward()
    assert rewards.grad.tolist() == [0, 1, 1, 1, 0, 0]


def _level_probability(s: float, level: int, cuts: list[float]) -> float:
    upper = _sigmoid(cuts[level] - s) if level < len(cuts) else 1.0
    return upper - (_sigmoid(cuts[level - 1] - s) if level else 0.0)


def test_cumulative_link_is_proportional_odds_between_levels_too() -> None:
    cuts = [-1.0, 0.2, 3.0]
    rows = [(s, level) for s in (-4.0, 0.0, 2.5) for level in (0.0, 1.0, 2.0, 3.0, 0.25, 2.5)]
    slow = []
    for s, level in rows:
        low, share = int(level), level - int(level)
        loss = -(1 - share) * math.log(_level_probability(s, low, cuts))
        slow.append(loss - (share * math.log(_level_probability(s, low + 1, cuts)) if share else 0.0))
    latent, levels = (_double(*column) for column in zip(*rows, strict=True))
    assert cumulative_link(latent, levels, _double(*cuts)).tolist() == pytest.approx(slow, abs=1e-10)


def test_cumulative_link_keeps_its_gradient_far_off() -> None:
    latent = _double(-80.0, 80.0).requires_grad_()
    cumulative_link(latent, _double(2.0, 1.0), _double(-1.0, 1.0, 2.0)).sum().backward()
    assert latent.grad.tolist() == pytest.approx([-1.0, 1.0], abs=1e-6)


def test_cumulative_link_recovers_latents_and_cutpoints() -> None:
    generator = torch.Generator().manual_seed(0)
    cuts, latent = _double(-1.0, 0.5, 2.0), torch.randn(20_000, generator=generator, dtype=torch.float64)
    noise = torch.rand(len(latent), generator=generator, dtype=torch.float64)
    levels = (noise[:, None] > (cuts - latent[:, None]).sigmoid()).sum(1).double()
    found = minimum(lambda x: cumulative_link(x[0] * latent, levels, rising_cutpoints(x[1:])).mean(), 4)
    assert float(found[0]) == pytest.approx(1.0, abs=0.05)
    assert rising_cutpoints(found[1:]).tolist() == pytest.approx(cuts.tolist(), abs=0.05)


def test_free_cutpoints_start_one_apart_around_zero() -> None:
    assert rising_cutpoints(free_cutpoints(5)).tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5])
    assert rising_cutpoints(free_cutpoints(2)).tolist() == pytest.approx([0.0])


def test_regression_moves_a_rating_to_its_scale() -> None:
    assert regression(_double(1.0, 0.0), _double(5.0, 1.0), 1.0, 5.0).tolist() == [0.0, 0.5]


def test_masked_entries_count_nowhere_whatever_they_hold() -> None:
    losses = torch.tensor([[1.0, math.nan, 5.0], [3.0, math.nan, math.inf]], requires_grad=True)
    value = masked_mean(losses, torch.tensor([[True, False, True], [True, False, False]]))
    assert value.item() == pytest.approx((2.0 + 5.0) / 2)
    value.backward()
    assert losses.grad.tolist() == [[0.25, 0.0, 0.5], [0.25, 0.0, 0.0]]


@pytest.mark.parametrize(("liked", "disliked"), [(7, 3), (1, 4)])
def test_the_score_of_likes_alone_is_the_log_odds_of_being_liked(liked: int, disliked: int) -> None:
    shares = _double(*[1.0] * liked, *[0.0] * disliked)
    fitted = minimum(lambda x: approval(x[0].expand(len(shares)), shares).mean(), 1)
    assert float(fitted[0]) == pytest.approx(math.log(liked / disliked), abs=1e-6)


def test_kto_is_its_equation_and_the_reference_point_passes_no_gradient() -> None:
    policy, reference = _double(-3.0, -1.0, -2.0), _double(-2.5, -1.5, -2.0)
    liked, beta = torch.tensor([True, False, True]), 0.3
    other, other_reference = _double(-4.0, -3.0, -2.0), _double(-4.5, -3.0, -2.1)
    point = kto_reference_point(other.requires_grad_(), other_reference)
    z = (0.5 + 0.0 + 0.1) / 3
    assert float(point) == pytest.approx(z)
    slow = [
        1.5 * (1 - _sigmoid(beta * (-0.5 - z))),
        0.8 * (1 - _sigmoid(beta * (z - 0.5))),
        1.5 * (1 - _sigmoid(beta * (0.0 - z))),
    ]
    found = kto(policy.requires_grad_(), reference, liked, point, beta=beta, desirable=1.5, undesirable=0.8)
    assert found.tolist() == pytest.approx(slow, abs=1e-12)
    found.sum().backward()
    assert other.grad is None
    assert policy.grad is not None
    assert [float(g) < 0 for g in policy.grad] == [True, False, True]
    assert float(kto_reference_point(other_reference, other).detach()) == 0
