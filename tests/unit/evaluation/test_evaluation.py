"""Win rates and their intervals."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from scipy.stats import beta, bootstrap, multinomial
from statsmodels.stats.proportion import proportion_confint

from lodestar.errors import InvalidArgument
from lodestar.evaluation import best_of_n, best_of_n_kl, bounded_mean, clopper_pearson, spread, win_rate


def test_a_tie_counts_half() -> None:
    rate = win_rate([2.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0])
    assert (rate.value, rate.n) == (0.625, 4)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_swapping_the_sides_mirrors_the_rate() -> None:
    rng = random.Random(0)
    ours, theirs = ([rng.gauss(mean, 1) for _ in range(300)] for mean in (0.3, 0.0))
    assert win_rate(ours, theirs).value == pytest.approx(1 - win_rate(theirs, ours).value)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_a_win_rate_of_few_prompts_covers_the_truth_whatever_it_is(n: int) -> None:
    """Exactly: every count of wins and ties with its probability, for every truth on a grid."""
    counts = [(wins, ties) for wins in range(n + 1) for ties in range(n + 1 - wins)]
    rates = {(w, t): win_rate([1.0] * w + [0.5] * t + [0.0] * (n - w - t), [0.5] * n) for w, t in counts}
    least = 1.0
    for a, b in itertools.product(range(11), repeat=2):
        if a + b > 10:
            continue
        p = (a / 10, b / 10, (10 - a - b) / 10)
        truth = p[0] + p[1] / 2
        covered = [(w, t, n - w - t) for (w, t), r in rates.items() if r.low - 1e-9 <= truth <= r.high + 1e-9]
        least = min(least, float(multinomial.pmf(covered, n, p).sum()))
    assert least >= 0.95


def test_a_win_rate_of_many_prompts_has_the_bootstraps_interval() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.choice([1.0, 0.5, 0.0], size=2000, p=[0.5, 0.2, 0.3])
    found = win_rate(outcomes.tolist(), [0.5] * 2000)
    theirs = bootstrap((outcomes,), np.mean, method="percentile", n_resamples=4000, rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_swapping_the_sides_mirrors_the_interval() -> None:
    rng = random.Random(4)
    ours, theirs = ([float(rng.randrange(4)) for _ in range(37)] for _ in range(2))
    one, other = win_rate(ours, theirs), win_rate(theirs, ours)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (3, 3), (7, 10), (50, 50), (430, 512)])
def test_an_interval_without_ties_is_the_exact_one_of_statsmodels(wins: int, n: int) -> None:
    found = win_rate([1.0] * wins + [0.0] * (n - wins), [0.5] * n)
    assert (found.low, found.high) == pytest.approx(proportion_confint(wins, n, method="beta"), abs=1e-9)


@pytest.mark.parametrize("prompts", [1, 2, 3, 5, 9, 25])
def test_pairs_that_share_their_prompts_cover_the_truth(prompts: int) -> None:
    """Prompts differ in how hard they are (a beta distribution) and in how many pairs they have."""
    rng, covered, rounds = np.random.default_rng(5), 0, 200
    for seed in range(rounds):
        sizes = rng.geometric(0.25, prompts)
        right = rng.binomial(sizes, rng.beta(1.4, 0.6, prompts))
        values = [float(k < hits) for size, hits in zip(sizes, right, strict=True) for k in range(size)]
        groups = np.repeat(np.arange(prompts), sizes).tolist()
        rate = bounded_mean(values, groups, seed=seed)
        covered += rate.low <= 0.7 <= rate.high
        assert rate.high - rate.low > 0.01
    assert covered / rounds >= 0.95


def test_one_prompt_says_next_to_nothing_however_many_pairs_it_has() -> None:
    for right in (0, 7, 10):
        rate = bounded_mean([1.0] * right + [0.0] * (10 - right), ["p"] * 10)
        assert rate.high - rate.low > 0.97


def test_a_mean_outside_its_range_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="values: must be between -1 and 1"):
        bounded_mean([0.0, 1.5], low=-1.0)
    with pytest.raises(InvalidArgument, match="values: none"):
        bounded_mean([])


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


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 20), (20, 20), (3, 25), (199, 400), (1, 1), (515, 1030), (7, 100_000)]
)
def test_clopper_pearsons_limits_are_quantiles_of_beta_distributions(successes: int, n: int) -> None:
    found = clopper_pearson(successes, n)
    low = beta.ppf(0.025, successes, n - successes + 1) if successes else 0.0
    high = beta.ppf(0.975, successes + 1, n - successes) if successes < n else 1.0
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == successes / n
