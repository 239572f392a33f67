"""Win rates and their intervals."""

import math
import random
import statistics

import pytest
from scipy.stats import beta

from lodestar.errors import InvalidArgument
from lodestar.evaluation import best_of_n, best_of_n_kl, clopper_pearson, spread, wilson, win_rate


def test_a_tie_counts_half() -> None:
    rate = win_rate([2.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0])
    assert (rate.value, rate.n) == (0.625, 4)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_swapping_the_sides_mirrors_the_rate() -> None:
    rng = random.Random(0)
    ours, theirs = ([rng.gauss(mean, 1) for _ in range(300)] for mean in (0.3, 0.0))
    assert win_rate(ours, theirs).value == pytest.approx(1 - win_rate(theirs, ours).value)


def test_the_bootstrap_covers_the_truth_at_its_rate() -> None:
    rng, covered = random.Random(1), 0
    for i in range(60):
        wins = [rng.choices((1.0, 0.5, 0.0), (0.5, 0.2, 0.3))[0] for _ in range(150)]
        rate = win_rate(wins, [0.5] * 150, seed=i)
        covered += rate.low <= 0.6 <= rate.high
    assert 52 <= covered <= 60


def test_a_clean_sweep_has_an_honest_interval() -> None:
    rate = win_rate([1.0] * 50, [0.0] * 50)
    assert rate.value == rate.high == 1.0
    assert 0.9 < rate.low < 0.95


def test_wilson_agrees_with_the_textbook() -> None:
    rate = wilson(81, 263)
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.308, 0.2553, 0.3662), abs=5e-4)
    assert wilson(0, 10).low == 0.0


@pytest.mark.parametrize("bad", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [0.0])])
def test_judgements_that_make_no_rate_are_refused(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(InvalidArgument, match="judgements"):
        win_rate(*bad)


def test_best_of_n_judges_the_reply_that_scores_best_of_the_first_n() -> None:
    scores, judged = [[0.1, 0.9, 0.5], [3.0, 1.0, 9.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert best_of_n(scores, judged, 1) == [1.0, 4.0]
    assert best_of_n(scores, judged, 2) == [2.0, 4.0]
    assert best_of_n(scores, judged, 3) == [2.0, 6.0]
    with pytest.raises(InvalidArgument, match="n: 4 of 3 scored"):
        best_of_n(scores, judged, 4)


def test_best_of_n_with_a_perfect_judge_beats_one_sample_n_times_in_n_plus_one() -> None:
    rng = random.Random(2)
    draws = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(4000)]
    rate = win_rate(best_of_n(draws, draws, 4), [rng.gauss(0, 1) for _ in draws])
    assert rate.value == pytest.approx(4 / 5, abs=0.02)
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_a_spread_describes_its_values() -> None:
    values = [3.0, 1.0, 2.0, 5.0, 4.0]
    figures = spread(values)
    assert (figures.n, figures.mean, figures.quantiles) == (5, 3.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    assert figures.standard_deviation == pytest.approx(statistics.pstdev(values))
    with pytest.raises(InvalidArgument):
        spread([])


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (20, 20), (3, 25), (199, 400), (1, 1)])
def test_clopper_pearsons_limits_are_quantiles_of_beta_distributions(successes: int, n: int) -> None:
    found = clopper_pearson(successes, n)
    low = beta.ppf(0.025, successes, n - successes + 1) if successes else 0.0
    high = beta.ppf(0.975, successes + 1, n - successes) if successes < n else 1.0
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == successes / n
