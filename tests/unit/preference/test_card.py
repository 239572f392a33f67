"""The reward model's card: calibration, baselines, accuracy."""

import json
import math
import random

import pytest

from lodestar.preference.baselines import BagOfWords, length_differences
from lodestar.preference.calibration import (
    calibration_offset,
    expected_calibration_error,
    reliability,
    win_probability,
)
from lodestar.preference.card import Judged, accuracy, make_card
from lodestar.records import Comparison


def _votes(count: int, *, overconfidence: float = 1.0) -> tuple[list[float], list[float]]:
    """Score differences and labels drawn from them; the scores overstate the odds by a factor."""
    rng = random.Random(0)
    true = [rng.gauss(0, 1.5) for _ in range(count)]
    labels = [float(rng.random() < win_probability(d)) for d in true]
    return [overconfidence * d for d in true], labels


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has() -> None:
    honest, boastful = (expected_calibration_error(reliability(*_votes(8000, overconfidence=f))) for f in (1.0, 3.0))
    assert honest < 0.02
    assert boastful > 0.1


def test_reliability_counts_every_pair_once_and_ties_half() -> None:
    bins = reliability([0.1, -0.1, 5.0], [0.5, 0.0, 1.0])
    assert [b.n for b in bins] == [2, 1]
    assert bins[0].observed == 0.75
    assert bins[1].predicted == pytest.approx(win_probability(5.0))


def test_win_probability_does_not_overflow() -> None:
    assert win_probability(-1e4) == 0.0
    assert win_probability(1e4) == 1.0


def test_the_offset_is_the_demonstrations_mean() -> None:
    assert calibration_offset([1.0, 2.0, 6.0]) == 3.0


def test_accuracy_leaves_ties_out_and_gives_no_opinion_half() -> None:
    rate = accuracy([1.0, -1.0, 2.0, 0.0, 9.0], [1.0, 0.0, 0.0, 1.0, 0.5])
    assert (rate.value, rate.n) == (2.5 / 4, 4)
    assert accuracy([1.0], [0.5]).n == 0


def _comparisons(count: int, seed: int) -> list[Comparison]:
    """People prefer kind words; length says nothing."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = [[rng.choice(["kind", "rude", "so", "and", "very"]) for _ in range(6)] for _ in range(2)]
        gap = (words[0].count("kind") - words[0].count("rude")) - (words[1].count("kind") - words[1].count("rude"))
        label = 0.5 if gap == 0 else float(rng.random() < win_probability(2.0 * gap))
        rows.append(Comparison("p", (" ".join(words[0]), " ".join(words[1])), label, id=str(i), gap=float(gap)))
    return rows


def test_the_bag_of_words_learns_which_words_people_like() -> None:
    train, unseen = _comparisons(600, 0), _comparisons(300, 1)
    labels = [row.label for row in unseen]
    assert accuracy(BagOfWords(train).differences(unseen), labels).low > 0.75
    assert accuracy(length_differences(unseen), labels).high < 0.65


def test_the_bag_of_words_finds_the_optimum_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train = [row for row in _comparisons(300, 2) if row.label != 0.5]
    ours = BagOfWords(train, l2=1e-2)
    features = ours._features(train)
    dense = [[0.0] * len(ours._index) for _ in train]
    for row, column, value in zip(features.pairs, features.words, features.values, strict=True):
        dense[int(row)][int(column)] = float(value)
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * len(train)), fit_intercept=False, tol=1e-8)
    theirs.fit(dense, [row.label for row in train])
    assert ours._weights_W.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=5e-3)


def test_the_card_holds_plain_finite_numbers_that_agree_with_each_other() -> None:
    train, unseen = _comparisons(200, 3), _comparisons(100, 4)
    scores = [(row.gap or 0.0, 0.0) for row in unseen]
    lengths = [tuple(len(text) for text in row.completions) for row in unseen]
    card = make_card(train, Judged(unseen, scores, lengths), [0.5, 1.5])  # type: ignore[arg-type]
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["pairs"] == 100
    assert card["accuracy"]["n"] == 100 - card["ties"]
    assert card["accuracy"]["low"] > 0.8
    assert card["gold"]["model"]["value"] > card["gold"]["annotators"]["value"]
    assert card["offset"] == 1.0
    assert sum(card["scores"]["counts"]) == sum(one["n"] for one in card["score_by_length"]["bins"]) == 200
    assert sum(one["n"] for one in card["calibration"]["bins"]) == 100
    assert math.isclose(card["scores"]["edges"][-1], max(score for pair in scores for score in pair))


def test_a_card_without_gold_gaps_says_nothing_about_them() -> None:
    rows = [Comparison("p", ("a b", "c"), 1.0), Comparison("p", ("d", "e f"), 0.0)]
    assert "gold" not in make_card(rows, Judged(rows, [(0.0, 0.0)] * 2, [(1, 1)] * 2), [0.0])
