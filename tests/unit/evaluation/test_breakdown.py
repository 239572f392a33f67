"""What is left of a win rate at equal length, and on each kind of prompt."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit

from lodestar.asking import Reply
from lodestar.breakdown import broken_down, by_kind, firth, kind_of, length_controlled
from lodestar.data.world import Request
from lodestar.errors import InvalidArgument
from lodestar.records import Prompt


def drawn(theta: float, phi: float, n: int, seed: int, longer_by: float = 0.0) -> tuple[list[float], list[float]]:
    """Outcomes of the model itself, and length differences."""
    rng = np.random.default_rng(seed)
    apart = rng.normal(longer_by, 10.0, n)
    won = rng.random(n) < expit(theta + phi * np.tanh(apart / apart.std()))
    return won.astype(float).tolist(), apart.tolist()


def test_without_length_differences_it_is_the_plain_win_rate_but_for_the_prior() -> None:
    found = length_controlled([1.0] * 300 + [0.0] * 100, [0.0] * 400)
    assert found.value == pytest.approx(300.5 / 401)  # Jeffreys' prior of a proportion: half a win and half a loss
    assert (found.length_effect, found.longer_by) == (0.0, 0.0)


def test_a_policy_that_wins_by_length_alone_is_level_at_equal_length() -> None:
    outcomes, apart = drawn(0.0, 3.0, 4000, seed=1, longer_by=10.0)
    found = length_controlled(outcomes, apart)
    assert sum(outcomes) / len(outcomes) > 0.7
    assert found.low < 0.5 < found.high
    assert found.length_effect == pytest.approx(3.0, abs=0.4)


def test_its_interval_covers_as_often_as_it_says() -> None:
    truth, covered = float(expit(0.8)), 0
    for seed in range(400):
        found = length_controlled(*drawn(0.8, 1.0, 150, seed))
        covered += found.low <= truth <= found.high
    assert 366 <= covered <= 393  # 95% of 400 within three standard errors


def test_it_stays_inside_where_one_side_always_wins() -> None:
    found = length_controlled([1.0] * 20, [float(i % 5 - 2) for i in range(20)])
    assert 0.5 < found.low < found.value < found.high < 1.0


def test_it_is_unsure_where_no_pair_is_of_equal_length() -> None:
    found = length_controlled([1.0] * 20, [float(i) for i in range(20)])
    assert found.low < 0.5 < found.value


def test_firths_fit_is_the_likelihoods_where_there_are_many_rows() -> None:
    outcomes, apart = drawn(0.5, 1.0, 20000, seed=3)
    design = np.stack([np.ones(len(apart)), np.tanh(np.array(apart) / np.std(apart))], axis=1)
    ours, covariance = firth(design, np.array(outcomes))
    theirs = sm.Logit(outcomes, design).fit(disp=0)
    np.testing.assert_allclose(ours, theirs.params, atol=2e-3)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), theirs.bse, rtol=1e-2)


def test_firths_penalised_likelihood_is_at_its_top() -> None:
    rng = random.Random(5)
    x = np.array([[1.0, rng.gauss(0, 1)] for _ in range(12)])
    y = np.array([1.0] * 9 + [0.0] * 3)

    def penalised(beta: np.ndarray) -> float:
        p = expit(x @ beta)
        likelihood = float((y * np.log(p) + (1 - y) * np.log(1 - p)).sum())
        return likelihood + 0.5 * math.log(np.linalg.det(x.T @ (x * (p * (1 - p))[:, None])))

    top, _ = firth(x, y)
    for step in (0.01, -0.01):
        for axis in (0, 1):
            assert penalised(top + step * np.eye(2)[axis]) < penalised(top)


def test_unlike_lengths_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="longer_by: 1 differences of 2 outcomes"):
        length_controlled([1.0, 0.0], [1.0])


def test_kinds_have_their_own_rates() -> None:
    found = by_kind(["plain", "few-shot", "plain"], [1.0, 0.0, 1.0])
    assert [(kind, rate["value"], rate["n"]) for kind, rate in found.items()] == [
        ("plain", 1.0, 2),
        ("few-shot", 0.0, 1),
    ]


def test_a_prompts_kind_is_its_column_or_the_worlds_manner() -> None:
    asked = Request("mia", "pirate", "owl", ("home", "color")).text
    assert kind_of(asked, {}) == "pirate"
    assert kind_of(asked, {"kind": "few-shot"}) == "few-shot"
    assert kind_of("write a poem", {}) == "plain"


def test_an_evaluations_part_has_both() -> None:
    prompts = [Prompt(str(i), "x", columns={"kind": kind}) for i, kind in enumerate(("plain", "user-based"))]
    ours = [Reply("a", 9, "eos", 0, score) for score in (1.0, 2.0)]
    theirs = [Reply("b", 5, "eos", 0, 1.5) for _ in range(2)]
    found = broken_down(prompts, ours, theirs, "reward")
    assert found["length_controlled"]["longer_by"] == 4.0
    assert {kind: rate["value"] for kind, rate in found["by_kind"].items()} == {"plain": 0.0, "user-based": 1.0}
    assert "by_kind" not in broken_down(prompts[:1], ours[:1], theirs[:1], "reward")
