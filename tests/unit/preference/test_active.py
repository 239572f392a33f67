"""Which pairs are worth asking about."""

from __future__ import annotations

import numpy as np
import pytest

from lodestar.errors import InvalidArgument
from lodestar.preference.active import at_random, bald, best, disagreement, diverse_batch, volume_removal


def test_bald_is_zero_where_members_agree_and_highest_where_they_are_sure_and_differ() -> None:
    margins_NM = np.array([[3.0, 3.0], [0.0, 0.0], [-20.0, 20.0], [-1.0, 1.0]])
    score_N = bald(margins_NM)
    assert score_N[:2] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert score_N[2] == pytest.approx(np.log(2), abs=1e-6)
    assert 0 < score_N[3] < score_N[2]


def test_bald_is_the_mutual_information() -> None:
    margins_NM = np.random.default_rng(0).normal(size=(5, 7))
    p_NM = 1 / (1 + np.exp(-margins_NM))
    joint = np.stack([p_NM, 1 - p_NM]) / 7
    answer, member = joint.sum(axis=2, keepdims=True), joint.sum(axis=0, keepdims=True)
    mutual_N = (joint * np.log(joint / (answer * member))).sum(axis=(0, 2))
    assert bald(margins_NM) == pytest.approx(mutual_N)


def test_disagreement_is_of_probabilities_not_of_scores() -> None:
    margins_NM = np.array([[20.0, 40.0], [-1.0, 1.0]])
    score_N = disagreement(margins_NM)
    assert score_N[0] == pytest.approx(0.0, abs=1e-6)
    assert score_N[1] > 0.2


def test_volume_removal_takes_the_less_helpful_answer() -> None:
    margins_NS = np.array([[2.0, 2.0], [-2.0, 2.0], [0.0, 0.0]])
    score_N = volume_removal(margins_NS)
    assert score_N[0] == 0.0, "the expected answer removes nothing"
    assert score_N[1] == pytest.approx((1 - np.exp(-2.0)) / 2)
    assert score_N[2] == 0.0


@pytest.mark.parametrize("chooser", [bald, disagreement, volume_removal])
def test_margins_that_cannot_be_used_are_refused(chooser: object) -> None:
    for margins in (np.zeros((3, 1)), np.zeros(3), np.array([[np.nan, 1.0]])):
        with pytest.raises(InvalidArgument, match="margins"):
            chooser(margins)  # type: ignore[operator]


def test_the_best_come_first_and_equals_in_their_order() -> None:
    assert best(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert len(best(at_random(4, np.random.default_rng(0)), 9)) == 4
    with pytest.raises(InvalidArgument, match="NaN"):
        best(np.array([1.0, np.nan]), 1)


def test_a_diverse_batch_holds_no_question_twice_and_no_mirror_image() -> None:
    features_NF = np.array([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [0.0, 1.0], [0.0, -0.9]])
    scores_N = np.array([5.0, 4.9, 4.8, 3.0, 2.9])
    chosen = diverse_batch(scores_N, features_NF, 2, pool=3)
    assert chosen.tolist() == [0, 3]
    assert sorted(diverse_batch(scores_N, features_NF, 5).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidArgument, match="features"):
        diverse_batch(scores_N, features_NF[:2], 2)


def test_an_active_learner_needs_fewer_answers_than_a_random_one() -> None:
    """A linear reward in 12 dimensions; candidates of which most say nothing."""

    def error(active: bool, seed: int) -> float:
        rng = np.random.default_rng(seed)
        true_F = rng.normal(size=12)
        features_NF = rng.normal(size=(600, 12)) * (rng.random((600, 1)) < 0.15) + rng.normal(size=(600, 12)) * 0.05
        answers_N = features_NF @ true_F > 0
        weight_F, covariance_FF, asked = np.zeros(12), np.eye(12), []
        for _ in range(6):
            draws_FM = weight_F[:, None] + np.linalg.cholesky(covariance_FF) @ rng.standard_normal((12, 32))
            scores_N = bald(features_NF @ draws_FM) if active else at_random(600, rng)
            scores_N[asked] = -1
            asked += best(scores_N, 8).tolist()
            weight_F, covariance_FF = _fit(features_NF[asked], answers_N[asked])
        test_NF = np.random.default_rng([seed, 1]).normal(size=(2000, 12))
        return float(((test_NF @ weight_F > 0) != (test_NF @ true_F > 0)).mean())

    gains = [error(False, seed) - error(True, seed) for seed in range(8)]
    assert np.mean(gains) > 0.02
    assert sum(gain > 0 for gain in gains) >= 7


def _fit(features_NF: np.ndarray, answers_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight_F = np.zeros(features_NF.shape[1])
    for _ in range(20):
        p_N = 1 / (1 + np.exp(-features_NF @ weight_F))
        curvature_FF = (features_NF * (p_N * (1 - p_N))[:, None]).T @ features_NF + 0.1 * np.eye(len(weight_F))
        weight_F = weight_F - np.linalg.solve(curvature_FF, features_NF.T @ (p_N - answers_N) + 0.1 * weight_F)
    return weight_F, np.linalg.inv(curvature_FF)
