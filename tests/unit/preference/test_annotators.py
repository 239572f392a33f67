"""Bad annotators are found soon, honest ones are left alone."""

from __future__ import annotations

import math
import random

import pytest

from lodestar.data.world import PANEL
from lodestar.preference.agreement import alpha_interval, krippendorff_alpha
from lodestar.preference.annotators import ALARM, Mark, assess, chance_evidence, side_evidence


def crowd(seed: int, items: int) -> list[Mark]:
    """The world's panel twice, somebody who clicks at random and somebody who takes the first; three judge an item,
    whose gold gap is drawn, and every fifth item is gold."""
    rng = random.Random(seed)
    noise = {f"{one.name}{i}": one.noise for one in PANEL for i in range(2)}
    people = [*noise, "random", "first"]
    marks = []
    for item in range(items):
        gap, gold = rng.gauss(0, 2), item % 5 == 0
        for name in rng.sample(people, 3):
            turned = rng.random() < 0.5
            if name == "first":
                label = 0.0 if turned else 1.0
            elif name == "random":
                label = float(rng.random() < 0.5)
            else:
                label = float(rng.random() < 1 / (1 + math.exp(-gap / noise[name])))
            side = 1 if (label == 1) != turned else -1
            expected = {str(item): float(gap > 0)} if gold and abs(gap) > 1 else {}
            marks.append(Mark(name, str(item), {str(item): label}, side, str(side), 2.0, expected))
    return marks


def test_whoever_clicks_at_random_or_takes_the_first_is_doubted_and_hardly_anybody_else() -> None:
    soon = 0
    wronged: list[str] = []
    for seed in range(8):
        found = {one.name: one for one in assess(crowd(seed, 400))}
        assert min(doubt.after for doubt in found["first"].doubts if doubt.test == "side") <= 12
        after = min(doubt.after for doubt in found["random"].doubts if doubt.test == "chance")
        assert after <= 100
        soon += after <= 60
        wronged += [name for name, one in found.items() if one.doubts and name not in ("first", "random")]
    assert soon >= 7
    honest = 8 * (len(found) - 2)
    assert len(wronged) <= 3 * ALARM * honest, wronged  # three tests, each at its level


def test_figures_of_one_person() -> None:
    marks = [
        Mark("ada", "1", {"1": 1.0}, 1, "A", 3.0, {"1": 1.0}),
        Mark("ada", "2", {"2": 0.0}, 1, "A", 5.0, {"2": 1.0}),
        Mark("ada", "3", {"3": 0.5}, 0, "=", -1.0),
        Mark("bob", "1", {"1": 1.0}, -1, "B", 1.0),
        Mark("bob", "2", {"2": 1.0}, -1, "B", 1.0),
    ]
    ada, bob = assess(marks)
    assert (ada.judgements, ada.agreement.value, ada.agreement.n) == (3, 0.5, 2)
    assert (ada.gold.value, ada.gold.n) == (0.5, 2)
    assert (ada.first.value, ada.longest_run, ada.median_seconds) == (1.0, 2, 5.0)
    assert (bob.first.value, bob.gold.n) == (0.0, 0)
    assert not ada.doubts


def test_the_mixture_is_the_integral_that_it_says() -> None:
    n, k, steps = 12, 9, 200_000
    total = 0.0
    for i in range(steps):
        p = (i + 0.5) / steps
        total += p**k * (1 - p) ** (n - k) / (math.pi * math.sqrt(p * (1 - p))) / steps
    assert side_evidence(k, n) == pytest.approx(math.log(total * 2**n), rel=1e-3)


@pytest.mark.slow
def test_honest_sides_are_doubted_no_oftener_than_stated() -> None:
    rng, alarms, people = random.Random(1), 0, 3000
    for _ in range(people):
        firsts = 0
        for n in range(1, 400):
            firsts += rng.random() < 0.5
            if side_evidence(firsts, n) >= math.log(1 / ALARM):
                alarms += 1
                break
    assert alarms / people <= ALARM + 3 * math.sqrt(ALARM / people)


def test_chance_evidence_is_a_martingale_for_who_agrees_at_the_stated_rate() -> None:
    for honest in (0.6, 0.75, 0.9):
        mean = honest * math.exp(chance_evidence(True, honest)) + (1 - honest) * math.exp(
            chance_evidence(False, honest)
        )
        assert mean == pytest.approx(1.0)


def test_the_interval_of_alpha_covers_the_alpha_of_ever_more_units() -> None:
    def units(count: int, seed: int) -> list[list[float]]:
        rng = random.Random(seed)
        rates = [rng.random() for _ in range(count)]
        return [[float(rng.random() < rate) for _ in range(3)] for rate in rates]

    true = krippendorff_alpha(units(40_000, 0), "ordinal")
    assert true is not None
    covered = 0
    for seed in range(1, 41):
        interval = alpha_interval(units(120, seed), "ordinal", resamples=300)
        assert interval is not None
        covered += interval[0] <= true <= interval[1]
    assert covered >= 34


def test_there_is_no_interval_without_an_alpha() -> None:
    assert alpha_interval([[1.0], [0.0]], "nominal") is None
    assert alpha_interval([[1.0, 1.0], [1.0, 1.0]], "nominal") is None
