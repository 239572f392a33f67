"""Oracle 5: GAE, whitening, both clips and the normalisation against slow float64 code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lodestar_kernels.logprob import kl_divergence

from lodestar.ppo import kl, losses
from lodestar.ppo.ema import update_average
from lodestar.ppo.gae import packed_gae
from lodestar.ppo.moments import RunningMoments, whiten
from lodestar.ppo.rewards import shape_scores, token_rewards
from lodestar.ppo.schedules import linear_decay
from tests.unit.ppo import reference

numbers = st.floats(-5, 5, width=32)
lengths_of = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def columns(draw: st.DrawFn, rows: int, count: int) -> list[torch.Tensor]:
    column = st.lists(numbers, min_size=rows, max_size=rows)
    return [torch.tensor(draw(column), dtype=torch.float64) for _ in range(count)]


@st.composite
def packed(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    lengths = draw(lengths_of)
    rewards, values = columns(draw, sum(lengths), 2)
    return rewards, values, lengths


@settings(max_examples=60, deadline=None)
@given(packed(), st.floats(0.1, 1), st.floats(0, 1))
def test_packed_gae_is_the_definition(
    data: tuple[torch.Tensor, torch.Tensor, list[int]], gamma: float, lam: float
) -> None:
    rewards, values, lengths = data
    advantages, returns = packed_gae(rewards, values, torch.tensor(lengths), gamma=gamma, lam=lam)
    parts = zip(rewards.split(lengths), values.split(lengths), strict=True)
    expected = [reference.gae(r.tolist(), v.tolist(), gamma, lam) for r, v in parts]
    assert torch.allclose(advantages, torch.tensor([a for part, _ in expected for a in part], dtype=torch.float64))
    assert torch.allclose(returns, torch.tensor([r for _, part in expected for r in part], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=30))
def test_whitening_is_the_definition(values: list[float]) -> None:
    expected = torch.tensor(reference.whiten(values), dtype=torch.float64)
    assert torch.allclose(whiten(torch.tensor(values, dtype=torch.float64)), expected, atol=1e-6)


@st.composite
def loss_inputs(draw: st.DrawFn) -> list[torch.Tensor]:
    return columns(draw, draw(st.integers(1, 12)), 4)


@settings(max_examples=80, deadline=None)
@given(loss_inputs(), st.floats(0.05, 0.5), st.integers(1, 40))
def test_both_losses_are_the_definition(inputs: list[torch.Tensor], clip: float, tokens: int) -> None:
    new, old, third, fourth = inputs
    weights = fourth.abs()
    policy = losses.policy_loss(new, old, third, weights, clip=clip, tokens=tokens)
    lists = [column.tolist() for column in (new, old, third, weights)]
    assert float(policy.loss) == pytest.approx(reference.policy_loss(*lists, clip, tokens), rel=1e-9, abs=1e-12)
    value = losses.value_loss(new, old, third, clip=clip, tokens=tokens)
    assert float(value.loss) == pytest.approx(reference.value_loss(*lists[:3], clip, tokens), rel=1e-9, abs=1e-12)


def test_clipped_tokens_pass_no_gradient() -> None:
    new = torch.tensor([0.5, 0.5, -0.5, 0.1], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    sums = losses.policy_loss(new, torch.zeros(4), advantages, torch.ones(4), clip=0.2, tokens=4)
    sums.loss.backward()
    assert (new.grad == 0).tolist() == [True, False, True, False]
    assert int(sums.clipped) == 2


def test_importance_weights_are_capped_and_carry_no_gradient() -> None:
    proximal = torch.tensor([0.0, 2.0], requires_grad=True)
    weights = losses.importance_weights(proximal, torch.tensor([math.log(2.0), 0.0]), cap=2.0)
    assert weights.tolist() == pytest.approx([0.5, 2.0])
    assert not weights.requires_grad


def test_losses_of_micro_batches_add_up() -> None:
    torch.manual_seed(0)
    new, old, advantages, weights = torch.randn(4, 10, dtype=torch.float64)
    whole = losses.policy_loss(new, old, advantages, weights, clip=0.2, tokens=10).loss
    parts = [
        losses.policy_loss(new[s], old[s], advantages[s], weights[s], clip=0.2, tokens=10).loss
        for s in (slice(0, 3), slice(3, 10))
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-12)


def test_score_lies_on_the_last_real_token_and_kl_on_every_token() -> None:
    rewards = token_rewards(
        torch.tensor([-1.0, -2.0, -3.0]),
        torch.tensor([-1.5, -2.0, -2.0]),
        torch.tensor([10.0, 20.0]),
        torch.tensor([2, 1]),
        kl_coefficient=0.1,
    )
    assert rewards.tolist() == pytest.approx([-0.05, 10.0, 20.1])


def test_scores_are_offset_then_clipped_then_scaled_and_truncation_replaces_them() -> None:
    scores, truncated = torch.tensor([5.0, 1.5, 9.0]), torch.tensor([False, False, True])
    shaped = shape_scores(scores, truncated, offset=1.0, clip=2.0, scale=0.5, missing_eos=-3.0)
    assert shaped.tolist() == [4.0, 1.0, -3.0]
    kept = shape_scores(scores, truncated, offset=1.0)
    assert kept.tolist() == [4.0, 0.5, 8.0]


def exact_kl(logits_V: torch.Tensor, reference_V: torch.Tensor) -> torch.Tensor:
    """KL over the vocabulary of two rows of logits: the heads are identities."""
    identity_VV = torch.eye(len(logits_V), dtype=logits_V.dtype)
    return kl_divergence(logits_V[None], identity_VV, reference_V[None], identity_VV)[0]


def test_kl_estimators_have_the_exact_value_in_expectation() -> None:
    torch.manual_seed(0)
    logits, reference_logits = torch.randn(2, 6, dtype=torch.float64)
    p, log_p, log_q = logits.softmax(0), logits.log_softmax(0), reference_logits.log_softmax(0)
    exact = exact_kl(logits, reference_logits)
    assert torch.allclose((p * kl.k1(log_p, log_q)).sum(), exact)
    assert torch.allclose((p * kl.k3(log_p, log_q)).sum(), exact)
    assert (kl.k3(log_p, log_q) >= 0).all()


def test_gradient_of_k2_on_own_samples_is_that_of_the_kl_and_gradient_of_k3_is_not() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference_logits = torch.randn(6, dtype=torch.float64)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits)[0]

    p = logits.softmax(0).detach()
    exact = gradient(exact_kl(logits, reference_logits))
    log_q = reference_logits.log_softmax(0)
    assert torch.allclose(gradient((p * kl.k2(logits.log_softmax(0), log_q)).sum()), exact)
    assert not torch.allclose(gradient((p * kl.k3(logits.log_softmax(0), log_q)).sum()), exact, atol=1e-2)
    assert torch.allclose(gradient((p * kl.k1(logits.log_softmax(0), log_q)).sum()), torch.zeros(6).double())


def test_adaptive_controller_moves_by_at_most_a_fifth_of_n_over_the_horizon() -> None:
    controller = kl.AdaptiveKl(0.1, target=6.0, horizon=10_000)
    assert controller.update(600.0, 64).coefficient == pytest.approx(0.1 * (1 + 0.2 * 64 / 10_000))
    assert controller.update(0.0, 64).coefficient == pytest.approx(0.1 * (1 - 0.2 * 64 / 10_000))
    assert controller.update(6.6, 64).coefficient == pytest.approx(0.1 * (1 + 0.1 * 64 / 10_000))
    assert controller.update(6.0, 64).coefficient == 0.1
    assert kl.FixedKl(0.05).update(600.0, 64).coefficient == 0.05


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=5))
def test_running_moments_are_those_of_everything_seen(chunks: list[list[float]]) -> None:
    moments = RunningMoments()
    for chunk in chunks:
        moments = moments.update(torch.tensor(chunk, dtype=torch.float64))
    everything = torch.tensor([v for chunk in chunks for v in chunk], dtype=torch.float64)
    assert moments.count == len(everything)
    if len(everything) and float(everything.std(unbiased=False)) > 1e-6:
        assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-6)
        assert moments.standard_deviation == pytest.approx(float(everything.std(unbiased=False)), rel=1e-6)


def test_scores_that_never_vary_are_not_blown_up() -> None:
    assert RunningMoments().update(torch.ones(5)).standard_deviation == 1.0


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert losses.explained_variance(returns, returns) == 1.0
    assert losses.explained_variance(torch.ones(3), returns) == pytest.approx(0.0)
    assert losses.explained_variance(returns, torch.ones(3)) == 0.0


def test_learning_rate_falls_linearly_to_zero() -> None:
    assert [linear_decay(step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_moving_average_follows_the_weights() -> None:
    average = [torch.zeros(2)]
    update_average(average, [torch.ones(2)], decay=0.9)
    update_average(average, [torch.ones(2)], decay=0.9)
    assert average[0].tolist() == pytest.approx([0.19, 0.19])


def test_the_kl_of_a_policy_is_known_from_sequences_of_another() -> None:
    """Two tokens of four symbols, the second's distribution given the first; the exact KL by enumeration."""
    torch.manual_seed(0)

    def policy(spread: float) -> tuple[torch.Tensor, torch.Tensor]:
        return (spread * torch.randn(4)).log_softmax(0), (spread * torch.randn(4, 4)).log_softmax(1)

    (first_ref, second_ref), (first_old, second_old) = policy(1.0), policy(1.0)
    first_new = (first_old + 0.4 * torch.randn(4)).log_softmax(0)
    second_new = (second_old + 0.4 * torch.randn(4, 4)).log_softmax(1)
    joint = first_new[:, None] + second_new
    exact = float((joint.exp() * (joint - first_ref[:, None] - second_ref)).sum())
    count = 40_000
    one = torch.multinomial(first_old.exp(), count, replacement=True)
    two = torch.multinomial(second_old.exp()[one], 1)[:, 0]

    def logprobs(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.stack((first[one], second[one, two]), dim=1).flatten()

    new_R, old_R = logprobs(first_new, second_new), logprobs(first_old, second_old)
    found = kl.sequence_kl(new_R, old_R, logprobs(first_ref, second_ref), torch.full((count,), 2))
    assert float(found) == pytest.approx(exact, rel=0.03)
    naive = float((new_R - logprobs(first_ref, second_ref)).view(-1, 2).sum(1).mean())
    assert abs(naive - exact) > 0.1 * exact, "without weights the old policy's samples give another figure"


def test_a_sequence_that_ended_keeps_its_weight() -> None:
    new_R, old_R = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-2.0, -1.0, -1.0])
    reference_R = torch.tensor([-1.5, -1.0, -3.0])
    found = kl.sequence_kl(new_R, old_R, reference_R, torch.tensor([1, 2]))
    weights = [math.e / (math.e + 1), 1 / (math.e + 1), math.exp(-1) / (math.e + math.exp(-1))]
    terms = [math.exp(-0.5) - 1 + 0.5, 0.0, math.exp(-1) - 1 + 1]
    assert float(found) == pytest.approx(sum(w * t for w, t in zip(weights, terms, strict=True)), rel=1e-6)


def test_no_value_counts_as_clipped_that_moved_less_than_the_clip() -> None:
    torch.manual_seed(1)
    old, step, returns = 3 * torch.randn(20_000), 0.1 * torch.randn(20_000), 3 * torch.randn(20_000)
    values = old + step
    moved = (values.double() - old.double()).abs() > 0.2
    held = (old.double() + (values.double() - old.double()).clamp(-0.2, 0.2) - returns.double()).square()
    expected = int((moved & (held > (values.double() - returns.double()).square())).sum())
    found = losses.value_loss(values, old, returns, clip=0.2, tokens=20_000)
    assert int(found.clipped) == pytest.approx(expected, abs=2)
    assert 0.01 < expected / 20_000 < 0.03
    still = losses.value_loss(values, old, returns, clip=1.0, tokens=20_000)
    assert int(still.clipped) == 0


def test_returns_that_vary_by_rounding_alone_are_explained_by_nothing() -> None:
    returns = torch.full((100,), 0.7) + 1e-8 * torch.randn(100)
    assert losses.explained_variance(torch.randn(100), returns) == 0.0
    assert losses.explained_variance(returns, returns) == 0.0
