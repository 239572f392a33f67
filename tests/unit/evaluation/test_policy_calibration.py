"""Reliability and calibration error of multiple-choice answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lodestar.errors import InvalidArgument
from lodestar.policy_calibration import Answered, answered, calibration, reliability_of, worsened


def rows(n: int, seed: int, over: float = 0.0) -> list[Answered]:
    """Answers of a policy that is right with the probability that it says less ``over``."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.4, 1.0, n)
    return [Answered(float(one), bool(rng.random() < one - over), 0.5) for one in sure]


def test_probabilities_are_among_the_answers_offered() -> None:
    found = answered([math.log(0.02), math.log(0.06), math.log(0.02)], answer=1)
    assert (found.confidence, found.right) == (pytest.approx(0.6), True)
    assert found.nll == pytest.approx(-math.log(0.6))
    assert answered([-1.0, -2.0], 1).right is False
    assert answered([-1000.0, -1001.0], 0).confidence == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(("logprobs", "answer"), [([-1.0], 0), ([-1.0, -2.0], 2), ([-1.0, -math.inf], 0)])
def test_what_is_no_question_is_refused(logprobs: list[float], answer: int) -> None:
    with pytest.raises(InvalidArgument, match="two finite ones or more are needed"):
        answered(logprobs, answer)


def test_the_error_is_the_mean_gap_of_the_bins() -> None:
    found = calibration([Answered(0.95, True, 0.1), Answered(0.95, False, 0.1), Answered(0.55, True, 0.1)])
    assert found["ece"]["value"] == pytest.approx((2 * 0.45 + 0.45) / 3)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert [(one["n"], one["observed"]) for one in found["bins"]] == [(1, 1.0), (2, 0.5)]


def test_a_calibrated_policys_error_is_that_of_chance() -> None:
    found = calibration(rows(4000, seed=1))
    assert found["ece"]["value"] < 2 * found["ece_of_chance"]
    assert found["ece"]["low"] < 0.01


def test_an_overconfident_policys_error_is_found_and_its_interval_covers_it() -> None:
    covered = 0
    for seed in range(60):
        error = calibration(rows(600, seed, over=0.2))["ece"]
        covered += error["low"] <= 0.2 <= error["high"]
    assert covered >= 52  # 95% of 60 are 57


def test_how_much_it_worsened_is_on_the_same_questions() -> None:
    before, after = rows(1500, seed=2), rows(1500, seed=2, over=0.15)
    found = worsened(before, after)
    assert found["low"] > 0.05
    assert found["low"] <= found["value"] + 0.02
    with pytest.raises(InvalidArgument, match="2 questions, 1500 before"):
        worsened(before, after[:2])


def test_certainty_is_in_the_last_bin() -> None:
    (found,) = reliability_of([Answered(1.0, True, 0.0)], bins=10)
    assert (found.low, found.high) == (0.9, 1.0)


def test_no_questions_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="rows: none"):
        calibration([])
