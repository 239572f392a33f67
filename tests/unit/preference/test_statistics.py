"""Intervals, paired differences and rank correlations against slow or published versions."""

from __future__ import annotations

import itertools
import random

import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lodestar.preference.statistics import (
    accuracy,
    accuracy_difference,
    correlation,
    kendall_tau,
    spearman,
)


def test_kendall_and_spearman_are_scipys() -> None:
    rng = random.Random(0)
    for _ in range(20):
        x, y = ([float(rng.randrange(5)) for _ in range(8)] for _ in range(2))
        pairs = list(itertools.combinations(range(8), 2))
        differences = [x[i] - x[j] for i, j in pairs]
        labels = [0.5 if y[i] == y[j] else float(y[i] > y[j]) for i, j in pairs]
        assert kendall_tau(differences, labels) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_correlation_with_a_constant_is_undefined_or_nothing() -> None:
    assert kendall_tau([1.0, 2.0], [0.5, 0.5]) is None
    assert correlation([1.0, 1.0], [0.0, 1.0]) == 0.0


def test_pairs_of_one_prompt_do_not_make_one_surer() -> None:
    """The same outcomes tenfold are no more evidence."""
    rng = random.Random(1)
    once = [1.0 if rng.random() < 0.7 else -1.0 for _ in range(60)]
    labels = [1.0] * 60
    alone = accuracy(once, labels, list(range(60)))
    many = accuracy(once * 10, labels * 10, list(range(60)) * 10)
    naive = accuracy(once * 10, labels * 10)
    assert many.value == alone.value
    assert many.high - many.low > 2 * (naive.high - naive.low)
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.2)


def test_a_paired_difference_is_surer_than_two_accuracies() -> None:
    rng = random.Random(2)
    theirs = [1.0 if rng.random() < 0.6 else -1.0 for _ in range(400)]
    ours = [1.0 if value < 0 and rng.random() < 0.15 else value for value in theirs]
    labels = [1.0] * 400
    found = accuracy_difference(ours, theirs, labels, list(range(400)))
    assert found.low > 0
    assert found.value == pytest.approx(accuracy(ours, labels).value - accuracy(theirs, labels).value)
    assert accuracy_difference(ours, ours, labels, list(range(400))).value == 0.0


def test_a_difference_that_never_varied_has_an_interval_all_the_same() -> None:
    found = accuracy_difference([1.0] * 3, [-1.0] * 3, [1.0] * 3, ["p", "q", "r"])
    low, _ = proportion_confint(3, 3, method="beta")
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 2 * low - 1, 1.0))
    same = accuracy_difference([1.0] * 4, [1.0] * 4, [1.0] * 4, list("pqrs"))
    assert same.low < 0.0 == same.value < same.high


def test_a_paired_difference_covers_the_truth() -> None:
    rng, covered = random.Random(3), 0
    for _ in range(200):
        theirs = [1.0 if rng.random() < 0.6 else -1.0 for _ in range(12)]
        ours = [1.0 if value < 0 and rng.random() < 0.5 else value for value in theirs]
        found = accuracy_difference(ours, theirs, [1.0] * 12, [i // 2 for i in range(12)])
        covered += found.low <= 0.2 <= found.high
    assert covered >= 190
