"""The reward model's card: calibration, baselines, accuracy."""

import json
import math
import random

import pytest
from sklearn import linear_model

from lodestar.preference.baselines import BagOfWords, length_differences
from lodestar.preference.calibration import (
    calibration_noise,
    calibration_offset,
    expected_calibration_error,
    fit_temperature,
    reliability,
    win_probability,
)
from lodestar.preference.card import Judged, make_card
from lodestar.preference.pairs import comparisons
from lodestar.preference.statistics import accuracy
from lodestar.records import Choice, Comparison, Feedback, Ranking, Ratings


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


def test_the_error_that_chance_alone_makes_is_that_of_calibrated_votes() -> None:
    rng = random.Random(3)
    differences = [rng.gauss(0, 0.5) for _ in range(760)]
    measured, expected = [], []
    for _ in range(200):
        bins = reliability(differences, [float(rng.random() < win_probability(d)) for d in differences])
        measured.append(expected_calibration_error(bins))
        expected.append(calibration_noise(bins))
    assert sum(expected) / 200 == pytest.approx(sum(measured) / 200, rel=0.07)
    assert 0.02 < expected[0] < 0.05


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


def _feedback(count: int, seed: int) -> list[Feedback]:
    """People prefer kind words; length says nothing."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = [[rng.choice(["kind", "rude", "so", "and", "very"]) for _ in range(6)] for _ in range(2)]
        worth = [float(text.count("kind") - text.count("rude")) for text in words]
        gap = worth[0] - worth[1]
        label = 0.5 if gap == 0 else float(rng.random() < win_probability(2.0 * gap))
        texts = (" ".join(words[0]), " ".join(words[1]))
        rows.append(Feedback(f"p{i}", texts, (Choice(0, 1, label),), id=str(i), gold=(worth[0], worth[1])))
    return rows


def _comparisons(count: int, seed: int) -> list[Comparison]:
    return comparisons(_feedback(count, seed))


def test_the_bag_of_words_learns_which_words_people_like() -> None:
    train, unseen = _comparisons(600, 0), _comparisons(300, 1)
    labels = [row.label for row in unseen]
    assert accuracy(BagOfWords(train).differences(unseen), labels).low > 0.75
    assert accuracy(length_differences(unseen), labels).high < 0.65


def test_the_bag_of_words_finds_the_optimum_of_scikit_learn() -> None:
    train = [row for row in _comparisons(300, 2) if row.label != 0.5]
    ours = BagOfWords(train, l2=1e-2)
    features = ours._features(train)
    dense = [[0.0] * len(ours._index) for _ in train]
    for row, column, value in zip(features.pairs, features.words, features.values, strict=True):
        dense[int(row)][int(column)] = float(value)
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * len(train)), fit_intercept=False, tol=1e-8)
    theirs.fit(dense, [row.label for row in train])
    assert ours._weights_W.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=5e-3)


def _judged(unseen: list[Feedback], *, boast: float = 1.0) -> Judged:
    """As an oracle of the gold rewards would score."""
    scores = [boast * value for row in unseen for value in row.gold or ()]
    return Judged(unseen, scores, [len(text) for row in unseen for text in row.completions])


def test_the_card_holds_plain_finite_numbers_that_agree_with_each_other() -> None:
    train, unseen = _comparisons(200, 3), _feedback(100, 4)
    judged = _judged(unseen)
    card = make_card(train, judged, [0.5, 1.5])
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["pairs"] == 100
    assert card["accuracy"]["n"] == 100 - card["ties"]
    assert card["accuracy"]["low"] > 0.8
    assert card["gold"]["model"]["value"] > card["gold"]["annotators"]["value"]
    assert card["offset"] == 1.0
    assert sum(card["scores"]["counts"]) == sum(one["n"] for one in card["score_by_length"]["bins"]) == 200
    assert sum(one["n"] for one in card["calibration"]["bins"]) == 100
    assert sum(one["n"] for one in card["by_length_difference"]) == card["accuracy"]["n"]
    assert math.isclose(card["scores"]["edges"][-1], max(judged.scores))


def test_a_card_without_gold_rewards_says_nothing_about_them() -> None:
    rows = [Feedback("p", ("a b", "c"), (Choice(0, 1, 1.0),)), Feedback("p", ("d", "e f"), (Choice(0, 1, 0.0),))]
    assert "gold" not in make_card(comparisons(rows), Judged(rows, [0.0] * 4, [1] * 4), [0.0])


def test_temperature_scaling_mends_a_boastful_models_probabilities() -> None:
    held_out, unseen = _feedback(1500, 5), _feedback(1500, 6)
    card = make_card(_comparisons(50, 7), _judged(unseen, boast=8.0), [0.0], _judged(held_out, boast=8.0))
    assert card["calibration"]["temperature"] == pytest.approx(4.0, rel=0.15)
    assert card["calibration"]["scaled"]["ece"] < 0.03 < card["calibration"]["ece"]


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_the_fitted_temperature_undoes_a_factor(factor: float) -> None:
    differences, labels = _votes(20_000)
    assert fit_temperature([factor * d for d in differences], labels) == pytest.approx(factor, rel=0.06)


def test_a_temperature_exists_for_scores_that_are_never_or_always_right() -> None:
    assert fit_temperature([1.0, 2.0], [0.0, 0.0]) == pytest.approx(100.0)
    assert fit_temperature([1.0, 2.0], [1.0, 1.0]) < 0.2
    assert fit_temperature([0.0, 0.0], [1.0, 0.0]) == 1.0


def test_the_card_tells_subsets_rankings_and_aspects_apart() -> None:
    rng = random.Random(8)
    rows, scores, helpful = [], [], []
    for i in range(40):
        values = [rng.gauss(0, 1) for _ in range(4)]
        order = sorted(range(4), key=lambda k: -values[k])
        texts = tuple(f"{rng.random()}" for _ in range(4))
        if i % 2:
            rows.append(Feedback(f"p{i}", texts, Ranking(tuple((k,) for k in order)), subset="ranked"))
            scores += values
        else:
            ratings = tuple(float(order.index(k) + 1) for k in range(4))
            rows.append(Feedback(f"p{i}", texts, Ratings({"helpful": ratings}, {"helpful": (1, 5)}), subset="rated"))
            scores += values  # the wrong way round: ratings rise as values fall
        helpful += [-value for value in values]
    card = make_card(_comparisons(20, 9), Judged(rows, scores, [5] * 160, {"helpful": helpful}, [0.1] * 160), [0.0])
    assert card["subsets"]["ranked"]["model"]["value"] == 1.0
    assert card["subsets"]["rated"]["model"]["value"] == 0.0
    assert card["kendall_tau"]["value"] == pytest.approx(0.0)
    assert card["aspects"]["helpful"]["n"] == 80
    assert card["aspects"]["helpful"]["spearman"] > 0.8
    assert len(card["ensemble"]["by_doubt"]) == 3
    assert card["by_confidence"]


def test_the_card_tells_whose_preferences_were_learned() -> None:
    """Cooks like the first, sailors the second; the model sides with the cooks."""
    said = [
        Feedback(f"p{i}", ("a", "b"), (Choice(0, 1, label),), annotator=name, flags=("unsafe", f"group {group}"))
        for i in range(6)
        for name, group, label in (("ada", "cooks", 1.0), ("bob", "sailors", 0.0), ("eve", "cooks", 1.0))
    ]
    judged = Judged(said, [1.0, 0.0] * len(said), [1] * 2 * len(said))
    groups = make_card(comparisons(said), judged, [0.0])["groups"]
    assert {name: (group["accuracy"]["value"], group["accuracy"]["n"]) for name, group in groups.items()} == {
        "cooks": (1.0, 12),
        "sailors": (0.0, 6),
    }
    assert "groups" not in make_card(comparisons(_feedback(20, 1)), _judged(_feedback(20, 1)), [0.0])
