"""Krippendorff's alpha against his published example, and weights that tell a careful annotator from a careless one."""

from __future__ import annotations

import itertools
import math
import random

import krippendorff
import numpy as np
import pytest

from lodestar.preference.agreement import agreement, krippendorff_alpha, reliabilities
from lodestar.preference.pairs import best, choices, comparisons
from lodestar.records import Choice, Comparison, Feedback, Ranking, Ratings

NONE = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
"""Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", part C: twelve units, four observers."""


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level: str, alpha: float) -> None:
    units = [[value for value in unit if value is not None] for unit in zip(*OBSERVERS, strict=True)]
    assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=5e-4)  # type: ignore[arg-type]


def test_alpha_is_undefined_where_nothing_varies_or_nobody_judged_twice() -> None:
    assert krippendorff_alpha([[1, 1], [1, 1]], "nominal") is None
    assert krippendorff_alpha([[1], [2]], "nominal") is None


def _vote(pair: int, name: str, label: float, *, turned: bool = False) -> Feedback:
    texts = (f"a{pair}", f"b{pair}")
    if turned:
        return Feedback(f"p{pair}", texts[::-1], (Choice(0, 1, 1 - label),), annotator=name)
    return Feedback(f"p{pair}", texts, (Choice(0, 1, label),), annotator=name)


def test_a_pair_turned_round_is_the_same_pair() -> None:
    rows = [_vote(i, name, i % 2, turned=name == "b") for i in range(10) for name in "ab"]
    assert agreement(rows)["pairs"] == 1.0


def test_alpha_of_pairs_is_krippendorffs_with_every_pair_both_ways_round() -> None:
    rng = random.Random(2)
    votes = {(i, name): rng.choice([0.0, 0.5, 1.0, 1.0]) for i in range(30) for name in "abc" if rng.random() < 0.8}
    rows = [_vote(i, name, label, turned=rng.random() < 0.5) for (i, name), label in votes.items()]
    once = [[votes.get((i, name), math.nan) for i in range(30)] for name in "abc"]
    both = np.concatenate((once, 1 - np.array(once)), axis=1)
    theirs = krippendorff.alpha(reliability_data=both, level_of_measurement="ordinal")
    assert agreement(rows)["pairs"] == pytest.approx(theirs)


def test_annotators_who_agree_on_pairs_agree_whichever_text_comes_first_in_the_alphabet() -> None:
    assert agreement([_vote(i, name, 1.0) for i in range(5) for name in "ab"])["pairs"] == 1.0


def test_ratings_agree_by_aspect() -> None:
    rows = [
        Feedback(f"p{i}", ("a",), Ratings({"fluency": (float(i % 5 + 1),)}, {"fluency": (1, 5)}), annotator=name)
        for i in range(10)
        for name in "ab"
    ]
    assert agreement(rows) == {"fluency": 1.0}


def test_one_voice_has_nobody_to_agree_with() -> None:
    assert agreement([_vote(i, "", i % 2) for i in range(4)] * 2) == {}


def test_who_guesses_weighs_less() -> None:
    rng = random.Random(0)
    rows = []
    for i in range(400):
        truth = float(rng.random() < 0.5)
        rows += [_vote(i, name, truth if rng.random() < 0.9 else 1 - truth) for name in ("ada", "emmy")]
        rows.append(_vote(i, "guess", float(rng.random() < 0.5)))
    weights = reliabilities([*rows, _vote(999, "alone", 1.0)])
    assert weights["ada"] > 2 * weights["guess"]
    assert weights["alone"] == pytest.approx(1.0)


def test_weights_measure_chance_between_labels_of_different_pairs() -> None:
    """Written out: every label against the mean of the others on every other pair, each pair both ways round."""
    rng = random.Random(3)
    votes = {i: {name: rng.choice([0.0, 0.5, 0.5, 1.0]) for name in "abc"} for i in range(25)}
    votes = {i: said | {"d": said["a"]} for i, said in votes.items()}
    found = reliabilities([_vote(i, name, label) for i, said in votes.items() for name, label in said.items()])
    both = {**votes, **{-1 - i: {name: 1 - label for name, label in said.items()} for i, said in votes.items()}}

    def others(i: int, name: str) -> float:
        return float(np.mean([label for other, label in both[i].items() if other != name]))

    apart = [abs(both[i][n] - others(j, m)) for i, j in itertools.permutations(both, 2) for n in "abcd" for m in "abcd"]
    chance = float(np.mean(apart))
    raw = {n: max(0.0, 1 - float(np.mean([abs(both[i][n] - others(i, n)) for i in both])) / chance) for n in "abcd"}
    mean = sum(raw.values()) / 4
    assert found == pytest.approx({name: value / mean for name, value in raw.items()})
    assert raw["a"] > 0.2


def test_good_annotators_of_a_task_with_many_ties_keep_their_weight() -> None:
    rng, rows = random.Random(4), []
    for i in range(300):
        truth = rng.choices([0.0, 0.5, 1.0], [1, 4, 1])[0]
        for name in ("ada", "emmy", "kay"):
            rows.append(_vote(i, name, truth if rng.random() < 0.75 else rng.choice([0.0, 0.5, 1.0])))
        rows.append(_vote(i, "guess", rng.choices([0.0, 0.5, 1.0], [1, 4, 1])[0]))
    weights = reliabilities(rows)
    assert min(weights[name] for name in ("ada", "emmy", "kay")) > 1.0 > 0.7 > weights["guess"]


def test_who_judged_a_pair_twice_does_not_agree_with_himself() -> None:
    rng, rows = random.Random(5), []
    for i in range(100):
        for name in "ab":
            rows.append(_vote(i, name, float(rng.random() < 0.5)))
    assert reliabilities([*rows, *rows]) == reliabilities(rows)


FOUR = ("a", "b", "c", "d")


def test_a_ranking_holds_every_pair_and_ties_where_places_are_shared() -> None:
    pairs = choices(Feedback("p", FOUR, Ranking(((2,), (0, 3), (1,)))))
    assert {(c.first, c.second): c.label for c in pairs} == {
        (0, 1): 1.0,
        (0, 2): 0.0,
        (0, 3): 0.5,
        (1, 2): 0.0,
        (1, 3): 0.0,
        (2, 3): 1.0,
    }
    assert {(c.first, c.second): c.strength for c in pairs}[1, 2] == 2.0


def test_ratings_compare_by_their_share_of_the_scale_over_the_aspects_that_both_were_rated_for() -> None:
    ratings = Ratings({"x": (1.0, 5.0, None), "y": (1.0, None, 0.0)}, {"x": (1, 5), "y": (0, 1)})
    pairs = choices(Feedback("p", FOUR[:3], ratings))
    assert [(c.first, c.second, c.label, c.strength) for c in pairs] == [
        (0, 1, 0.0, 1.0),
        (0, 2, 1.0, 1.0),
    ]


def test_the_same_text_twice_is_no_pair() -> None:
    assert len(choices(Feedback("p", ("a", "b", "a"), Ranking(((0,), (1,), (2,)))))) == 2


def test_comparisons_carry_gold_gaps_and_names() -> None:
    record = Feedback("p", ("a", "b"), (Choice(1, 0, 1.0, 2.0),), "7", "ada", "s", gold=(0.5, 2.0))
    assert comparisons([record]) == [Comparison("p", ("b", "a"), 1.0, "7", "ada", 1.5, 2.0, "s")]


def test_the_best_beats_all_others_or_nobody_is() -> None:
    assert best(Feedback("p", FOUR, Ranking(((2,), (0, 3), (1,))))) == "c"
    assert best(Feedback("p", FOUR, Ranking(((2, 0), (3,), (1,))))) is None
    assert best(Feedback("p", ("a",), Ratings({"x": (1.0,)}, {"x": (0, 1)}))) is None
