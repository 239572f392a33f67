"""From comparisons and scores to what single replies are called: verdicts and quantiles."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from lodestar.errors import InvalidArgument
from lodestar.preference.approval import Verdict, verdicts
from lodestar.preference.quantiles import quantised
from lodestar.records import Choice, Feedback, Ranking, Ratings


def test_a_winner_is_good_a_loser_bad_and_a_tie_says_nothing() -> None:
    rows = [
        Feedback("p", ("a", "b"), (Choice(0, 1, 0.0),)),
        Feedback("p", ("c", "d"), (Choice(0, 1, 0.5),)),
        Feedback("q", ("a", "b"), (Choice(0, 1, 0.8),)),
    ]
    assert verdicts(rows) == [
        Verdict("p", "a", good=False),
        Verdict("p", "b", good=True),
        Verdict("q", "a", good=True),
        Verdict("q", "b", good=False),
    ]


def test_several_judgements_of_one_reply_are_counted_together() -> None:
    said = [1.0, 1.0, 0.0]
    rows = [Feedback("p", ("a", "b"), (Choice(0, 1, label),), annotator=str(i)) for i, label in enumerate(said)]
    assert verdicts(rows) == [Verdict("p", "a", good=True), Verdict("p", "b", good=False)]
    assert verdicts([*rows, Feedback("p", ("a", "b"), (Choice(0, 1, 0.0),))]) == [], "two against two"


def test_the_middle_of_a_ranking_is_neither_good_nor_bad() -> None:
    (row,) = (Feedback("p", ("a", "b", "c"), Ranking(((2,), (0,), (1,)))),)
    assert verdicts([row]) == [Verdict("p", "b", good=False), Verdict("p", "c", good=True)]


def test_ratings_are_of_the_reply_itself() -> None:
    scale = {"helpful": (1.0, 7.0)}
    rows = [
        Feedback("p", ("a", "b"), Ratings({"helpful": (6.0, 5.0)}, scale)),
        Feedback("p", ("c",), Ratings({"helpful": (2.0,)}, scale)),
        Feedback("p", ("d",), Ratings({"helpful": (4.0,)}, scale)),
    ]
    assert [(one.completion, one.good) for one in verdicts(rows)] == [("a", True), ("b", True), ("c", False)]


def test_quantiles_are_equally_large_and_ordered_by_score() -> None:
    scores = [random.Random(1).gauss(0, 1) for _ in range(1)] + [float(i) for i in range(99)]
    found = quantised(scores, 5)
    assert set(Counter(found).values()) == {20}
    pairs = sorted(zip(scores, found, strict=True))
    assert [quantile for _, quantile in pairs] == sorted(found)


def test_equal_scores_share_their_quantile() -> None:
    assert quantised([1.0] * 10 + [0.0] * 10, 5) == [3] * 10 + [1] * 10
    assert set(quantised([2.0] * 7, 5)) == {2}
    assert quantised([0.0, 1.0, 1.0, 1.0], 2) == [0, 1, 1, 1]
    with pytest.raises(InvalidArgument, match="NaN"):
        quantised([float("nan")], 2)
    with pytest.raises(InvalidArgument, match="2 at least"):
        quantised([1.0], 1)


def test_rounds_of_quark_on_a_table_climb_to_the_best_arm() -> None:
    """The exact algorithm without a network: π(arm | best token) is the pool's distribution in the best quantile."""
    rng, rewards = random.Random(3), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    policy, pool, means = [1 / 6] * 6, [], []
    for _ in range(6):
        pool += rng.choices(range(6), weights=policy, k=600)
        quantile = quantised([rewards[arm] + rng.gauss(0, 0.3) for arm in pool], 5)
        best = [arm for arm, place in zip(pool, quantile, strict=True) if place == 4]
        policy = [best.count(arm) / len(best) for arm in range(6)]
        means.append(sum(share * reward for share, reward in zip(policy, rewards, strict=True)))
    assert means[0] > 4
    assert means[-1] > 4.95, "a pool that holds it keeps the best arm alone in its best quantile"
    assert all(later >= earlier - 0.05 for earlier, later in itertools.pairwise(means))
