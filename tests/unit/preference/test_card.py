"""The reward model's card: calibration, baselines, accuracy."""

import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import statsmodels.api
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


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0, 5e3])
def test_the_fitted_temperature_is_one_over_the_slope_of_statsmodels(factor: float) -> None:
    differences, labels = _votes(4000)
    found = fit_temperature([factor * d for d in differences], labels)
    logit = statsmodels.api.Logit(labels, np.array(differences)[:, None]).fit(disp=0)
    high, low = 1 / logit.conf_int()[0]
    assert found.value == pytest.approx(factor / logit.params[0], rel=1e-6)
    assert (found.low, found.high) == pytest.approx((factor * low, factor * high), rel=0.02)
    assert found.supported is (factor != 1.0)


def test_a_temperature_exists_for_differences_however_large() -> None:
    """70% right at a difference of 1000: σ(1000/T) = 0.7."""
    found = fit_temperature([1000.0, -1000.0] * 50, [1.0, 0.0] * 35 + [0.0, 1.0] * 15)
    assert found.value == pytest.approx(1000 / math.log(7 / 3), rel=1e-6)


def test_a_temperature_that_the_pairs_do_not_know_has_an_open_end() -> None:
    opposite = fit_temperature([1.0, 2.0], [0.0, 0.0])
    assert (opposite.value, opposite.high) == (math.inf, math.inf)
    right = fit_temperature([1.0, 2.0], [1.0, 1.0])
    assert (right.value, right.low, right.high) == (0.0, 0.0, math.inf)
    assert fit_temperature([1.0] * 60, [1.0] * 60).low == 0.0
    assert fit_temperature([1.0] * 60, [1.0] * 60).high < 1.0
    nothing = fit_temperature([0.0, 0.0], [1.0, 0.0])
    assert (nothing.value, nothing.low, nothing.high) == (math.inf, 0.0, math.inf)
    few = fit_temperature(*_votes(12, overconfidence=8.0))
    assert not any(one.supported for one in (opposite, right, nothing, few))


@pytest.mark.parametrize("prompts", [1, 2, 4, 9, 40])
def test_the_temperatures_interval_covers_the_truth_where_pairs_share_prompts(prompts: int) -> None:
    """A prompt's pairs agree more than independent votes would: each prompt repeats one vote."""
    rng, covered, rounds = np.random.default_rng(1), 0, 120
    for _ in range(rounds):
        one = rng.normal(0, 3, prompts)
        vote = (rng.random(prompts) < 1 / (1 + np.exp(-one / 2))).astype(float)
        sizes = rng.geometric(0.4, prompts)
        groups = np.repeat(np.arange(prompts), sizes).tolist()
        found = fit_temperature(np.repeat(one, sizes).tolist(), np.repeat(vote, sizes).tolist(), groups)
        covered += found.low <= 2.0 <= found.high
    assert covered / rounds >= 0.95


def test_no_temperature_is_applied_that_the_held_out_pairs_do_not_support() -> None:
    """Scores that hardly differ, and say nothing of the labels."""
    rng = random.Random(11)
    held_out, unseen = _feedback(60, 12), _feedback(60, 13)
    flat = [Judged(rows, [rng.gauss(0, 1e-3) for _ in range(120)], [1] * 120) for rows in (unseen, held_out)]
    calibration = make_card(_comparisons(20, 14), flat[0], [0.0], flat[1])["calibration"]
    assert calibration["temperature_high"] is None
    assert "scaled" not in calibration
    honest = make_card(_comparisons(20, 14), _judged(unseen, boast=2.0), [0.0], _judged(held_out, boast=2.0))
    assert honest["calibration"]["temperature_low"] < 1 < honest["calibration"]["temperature_high"]
    assert "scaled" not in honest["calibration"], "1 leaves the scores as they are, and is as likely"


# --- nothing hangs on the order of writing ---------------------------------------------------------------------------


def test_equal_scores_are_calibrated_whichever_completion_is_written_first() -> None:
    for labels in ([1.0] * 8, [1.0, 0.0] * 4, [0.0] * 8):
        assert expected_calibration_error(reliability([0.0] * 8, labels)) == 0.0


def _turned(judged: Judged, rng: random.Random) -> Judged:
    """The same feedback with its rows in another order, and the completions of each."""
    order = list(range(len(judged.feedback)))
    rng.shuffle(order)
    rows, places = [], []
    for i in order:
        record = judged.feedback[i]
        seats = list(range(len(record.completions)))  # seats[new] = old
        rng.shuffle(seats)
        at = {old: new for new, old in enumerate(seats)}
        verdict: Any = record.verdict
        if isinstance(verdict, Ranking):
            verdict = Ranking(tuple(tuple(at[old] for old in tied) for tied in verdict.order))
        elif isinstance(verdict, Ratings):
            verdict = Ratings({k: tuple(v[old] for old in seats) for k, v in verdict.aspects.items()}, verdict.scales)
        else:
            swapped = [(at[c.first] > at[c.second], c) for c in verdict]
            verdict = tuple(
                Choice(at[c.second], at[c.first], 1 - c.label, c.strength)
                if swap
                else Choice(at[c.first], at[c.second], c.label, c.strength)
                for swap, c in swapped
            )
        gold = record.gold and tuple(record.gold[old] for old in seats)
        texts = tuple(record.completions[old] for old in seats)
        rows.append(replace(record, completions=texts, verdict=verdict, gold=gold))
        places += [judged.starts[i] + old for old in seats]
    pick = lambda values: [values[place] for place in places]  # noqa: E731 - used on four lists next to it
    aspects = {name: pick(values) for name, values in judged.aspects.items()}
    assert judged.deviations is not None
    return Judged(rows, pick(judged.scores), pick(judged.lengths), aspects, pick(judged.deviations))


def test_the_card_does_not_depend_on_the_order_of_rows_and_completions() -> None:
    rng = random.Random(15)
    rows: list[Feedback] = []
    for i in range(60):
        texts = tuple(f"{word} {i}" for word in "abcd"[: 2 + i % 3])
        ratings = tuple(rng.choice([None, 1.0, 2.0, 5.0]) for _ in texts)
        order = list(range(len(texts)))
        rng.shuffle(order)
        kinds: tuple[Any, ...] = (
            tuple(Choice(0, k, rng.choice([1.0, 1.0, 0.5, 0.7])) for k in range(1, len(texts))),  # the chosen first
            Ranking(tuple((k,) for k in order)),
            Ratings({"x": ratings, "y": ratings[::-1]}, {"x": (1, 5), "y": (1, 5)}),
        )
        rows.append(Feedback(f"p{i // 2}", texts, kinds[i % 3], annotator="ab"[i % 2], subset=f"s{i % 2}"))
    count = sum(len(row.completions) for row in rows)
    scores, lengths, deviations = (
        [float(rng.randrange(n)) for _ in range(count)] for n in (3, 2, 3)
    )  # ties everywhere
    judged = Judged(rows, scores, [int(n) for n in lengths], {"x": scores}, deviations)
    train = _comparisons(40, 16)
    one = make_card(train, judged, [0.0], judged)
    for _ in range(3):
        other = _turned(judged, rng)
        _same(make_card(train, other, [0.0], other), one)


def _same(one: Any, other: Any) -> None:
    """Equal but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _same(a, b)
    else:
        assert one == pytest.approx(other, abs=1e-6) if isinstance(one, float) else one == other


def test_a_bag_of_words_does_not_depend_on_which_words_stood_first() -> None:
    rows = _comparisons(200, 17)
    turned = [replace(row, completions=row.completions[::-1], label=1 - row.label) for row in rows[::-1]]
    one, other = BagOfWords(rows).differences(rows), BagOfWords(turned).differences(rows)
    assert one == pytest.approx(other, abs=1e-3)
    assert BagOfWords(rows)._index == BagOfWords(turned)._index


def test_score_by_length_keeps_equal_lengths_together() -> None:
    """Scores drawn without a look at the length, all of 10 tokens: one bin, and no rise."""
    rng = random.Random(18)
    rows = _feedback(50, 19)
    found = make_card(_comparisons(20, 20), Judged(rows, [rng.gauss(0, 1) for _ in range(100)], [10] * 100), [0.0])
    (only,) = found["score_by_length"]["bins"]
    assert (only["tokens"], only["n"]) == (10.0, 100)
    mixed = Judged(rows, [rng.gauss(0, 1) for _ in range(100)], [10] * 60 + [20] * 40)
    bins = make_card(_comparisons(20, 20), mixed, [0.0])["score_by_length"]["bins"]
    assert [(one["tokens"], one["n"]) for one in bins] == [(10.0, 60), (20.0, 40)]


# --- rankings, ratings and choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verdict",
    [
        (Choice(0, 1, 1.0), Choice(1, 2, 1.0), Choice(1, 3, 1.0)),
        (Choice(0, 1, 1.0), Choice(1, 2, 1.0)),
        Ranking(((0,), (1,), (2,), (3,))),
        Ratings({"x": (5.0, 3.0, None, 1.0)}, {"x": (1, 5)}),
    ],
)
def test_a_model_that_is_right_on_every_pair_judged_has_a_tau_of_one(verdict: Any) -> None:
    rows = [Feedback(f"p{i}", ("a", "b", "c", "d"), verdict) for i in range(3)]
    scores = [4.0, 3.0, 2.0, 1.0] if not isinstance(verdict, Ratings) else [4.0, 3.0, 9.0, 1.0]
    card = make_card(_comparisons(20, 9), Judged(rows, scores * 3, [5] * 12), [0.0])
    assert card["kendall_tau"]["value"] == pytest.approx(1.0)
    assert card["kendall_tau"]["low"] < 0.2, "three prompts do not say much"


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
    doubt = [rng.random() for _ in range(160)]
    card = make_card(_comparisons(20, 9), Judged(rows, scores, [5] * 160, {"helpful": helpful}, doubt), [0.0])
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
