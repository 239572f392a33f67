"""Did the model become better? Pure functions of judgements: win rates, best-of-n, and their uncertainty.

A judgement is one number per reply, larger is better: the synthetic world's gold reward, or a reward model's score
(which says how far PPO got, not whether the model is better: PPO trained on it).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from lodestar.errors import InvalidArgument

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
RESAMPLES = 10_000
Floats = npt.NDArray[np.float64]
Judged = TypeVar("Judged")
"""A reply's judgement, or whatever else is known of it."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """A share of prompts with its 95% interval: ``WinRate(0.83, low=0.80, high=0.86, n=512)``."""

    value: float
    low: float
    high: float
    n: int


def win_rate(judgements: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> WinRate:
    """How often a reply is judged better than the baseline's reply to the same prompt; a tie counts ½.

    The interval is bounded_mean's, which gives ties their due weight; without ties it is Clopper and Pearson's.

    Raises:
        InvalidArgument: no prompts, as many judgements as baselines are needed, or one that is not finite.
    """
    if not judgements or len(judgements) != len(baseline):
        raise InvalidArgument("judgements", f"{len(judgements)} against {len(baseline)} of the baseline")
    if not all(map(math.isfinite, (*judgements, *baseline))):
        raise InvalidArgument("judgements", "NaN or infinity among them")
    outcomes = [0.5 if a == b else float(a > b) for a, b in zip(judgements, baseline, strict=True)]
    return bounded_mean(outcomes, seed=seed)


def clopper_pearson(successes: float, n: int, *, level: float = 0.95) -> WinRate:
    """A proportion with Clopper and Pearson's (1934) exact interval: it covers with at least ``level``, always.

    The limits are where the binomial tails reach (1 − level)/2, which are quantiles of beta distributions.

    Raises:
        InvalidArgument: n is 0 or less than the successes.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidArgument("n", f"{successes} successes of {n}")
    tail = (1 - level) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return WinRate(successes / n, low, high, n)


def bounded_mean(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
) -> WinRate:
    """The mean of numbers between ``low`` and ``high``, with a 95% interval that is honest for few of them.

    Each limit is Gaffke's (2005; Learned-Miller & Thomas 2019, "A new confidence interval for the mean of a bounded
    random variable"): the Bayesian bootstrap (Rubin 1981) of the data and one more observation at the end of the range.
    It is never of no width, for outcomes of 0 and 1 it is Clopper and Pearson's, and for many observations the
    bootstrap's. Values of one group, such as the pairs of a prompt, do not vary on their own: groups are drawn whole,
    and the one more is as large as the group that a value is in on average, Σ size² / Σ size.

    Raises:
        InvalidArgument: no values, or one outside the range.
    """
    if not values:
        raise InvalidArgument("values", "none")
    if not all(low <= value <= high for value in values):
        raise InvalidArgument("values", f"must be between {low:g} and {high:g}")
    share = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    names = range(len(values)) if groups is None else groups
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = np.array([index[name] for name in names])
    size_G = np.bincount(member).astype(np.float64)
    sum_G = np.bincount(member, weights=share).astype(np.float64)
    if bool((size_G == size_G[0]).all()) and bool(np.isin(sum_G, (0.0, size_G[0])).all()):
        rate = clopper_pearson(int((sum_G > 0).sum()), len(size_G))
        ends = rate.low, rate.high
    else:
        ends = 1 - _upper_limit(size_G - sum_G, size_G, seed), _upper_limit(sum_G, size_G, seed)
    below, above = (low + (high - low) * end for end in ends)
    mean = math.fsum(values) / len(values)
    return WinRate(mean, min(below, mean), max(above, mean), len(values))


def _upper_limit(sum_G: Floats, size_G: Floats, seed: int) -> float:
    """The upper 97.5% limit of Σ sums / Σ sizes; groups that are alike are drawn together."""
    kinds, counts_K = np.unique(np.stack((sum_G, size_G), axis=1), axis=0, return_counts=True)
    extra = float((size_G**2).sum() / size_G.sum())
    sums_K, sizes_K = np.append(kinds[:, 0], extra), np.append(kinds[:, 1], extra)
    counts_K = np.append(counts_K, 1).astype(np.float64)
    rng = np.random.default_rng(seed)
    at_once = max(1, 2_000_000 // len(counts_K))
    means = []
    for start in range(0, RESAMPLES, at_once):
        weights = rng.standard_gamma(counts_K, size=(min(at_once, RESAMPLES - start), len(counts_K)))
        means.append((weights @ sums_K) / (weights @ sizes_K))
    return float(np.quantile(np.concatenate(means), 0.975))


def best_of_n(scores: Sequence[Sequence[float]], judgements: Sequence[Sequence[Judged]], n: int) -> list[Judged]:
    """The judgement of the reply that scores best among the first n of each prompt: best-of-n sampling, judged.

    Its KL to the sampled policy is at most log n − (n − 1)/n (Stiennon et al. 2020; see best_of_n_kl).

    Raises:
        InvalidArgument: a prompt has fewer than n replies, or as many judgements as scores are needed.
    """
    if len(scores) != len(judgements):
        raise InvalidArgument("judgements", f"of {len(judgements)} prompts, scores of {len(scores)}")
    chosen = []
    for mine, judged in zip(scores, judgements, strict=True):
        if not 1 <= n <= len(mine) or len(mine) != len(judged):
            raise InvalidArgument("n", f"{n} of {len(mine)} scored and {len(judged)} judged replies")
        chosen.append(judged[max(range(n), key=mine.__getitem__)])
    return chosen


def best_of_n_kl(n: int) -> float:
    """Nats per sequence that best-of-n sampling strays at most: log n − (n − 1)/n."""
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation and quantiles of some figures."""

    n: int
    mean: float
    standard_deviation: float
    quantiles: tuple[float, float, float, float, float]
    """Least, quarter, median, three quarters, most."""


def spread(values: Sequence[float]) -> Spread:
    """Describes scores, KLs or lengths.

    Raises:
        InvalidArgument: no values.
    """
    if not values:
        raise InvalidArgument("values", "none")
    n, ordered = len(values), sorted(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / n)
    quarter, half, most = (ordered[round(share * (n - 1))] for share in (0.25, 0.5, 0.75))
    return Spread(n, mean, deviation, (ordered[0], quarter, half, most, ordered[-1]))
