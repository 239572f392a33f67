"""Did the model become better? Pure functions of judgements: win rates, best-of-n, and their uncertainty.

A judgement is one number per reply, larger is better: the synthetic world's gold reward, or a reward model's score
(which says how far PPO got, not whether the model is better: PPO trained on it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lodestar.errors import InvalidArgument

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class WinRate:
    """A share of prompts with its 95% interval: ``WinRate(0.83, low=0.80, high=0.86, n=512)``."""

    value: float
    low: float
    high: float
    n: int


def win_rate(judgements: Sequence[float], baseline: Sequence[float], *, seed: int = 0) -> WinRate:
    """How often a reply is judged better than the baseline's reply to the same prompt; a tie counts ½.

    The interval is a percentile bootstrap over prompts (Efron 1979), which gives ties their due weight; as outcomes are
    wins, ties and losses, a resample is a multinomial draw of their counts. Where all outcomes are equal the bootstrap
    has no width and Wilson's interval is given.

    Raises:
        InvalidArgument: no prompts, as many judgements as baselines are needed, or one that is not finite.
    """
    if not judgements or len(judgements) != len(baseline):
        raise InvalidArgument("judgements", f"{len(judgements)} against {len(baseline)} of the baseline")
    if not all(map(math.isfinite, (*judgements, *baseline))):
        raise InvalidArgument("judgements", "NaN or infinity among them")
    n = len(judgements)
    wins = sum(a > b for a, b in zip(judgements, baseline, strict=True))
    ties = sum(a == b for a, b in zip(judgements, baseline, strict=True))
    value = (wins + ties / 2) / n
    if n in (wins, ties, n - wins - ties):
        return wilson(value * n, n)
    shares = np.array([wins, ties, n - wins - ties]) / n
    resamples = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES) @ np.array([1.0, 0.5, 0.0]) / n
    low, high = np.quantile(resamples, [0.025, 0.975]).tolist()
    return WinRate(value, low, high, n)


def wilson(successes: float, n: int) -> WinRate:
    """A proportion with Wilson's (1927) 95% score interval, which stays within 0 … 1 and works at its ends.

    Raises:
        InvalidArgument: n is 0 or less than the successes.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidArgument("n", f"{successes} successes of {n}")
    p = successes / n
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return WinRate(p, max(0.0, middle - half), min(1.0, middle + half), n)


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> WinRate:
    """A proportion with Clopper and Pearson's (1934) exact interval: it covers with at least ``level``, always.

    The limits are where the binomial tails reach (1 − level)/2, found by bisection.

    Raises:
        InvalidArgument: n is 0 or less than the successes.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InvalidArgument("n", f"{successes} successes of {n}")
    tail = (1 - level) / 2

    def at_least(p: float) -> float:  # P(X ≥ successes)
        return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))

    def at_most(p: float) -> float:
        return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes + 1))

    low, high = 0.0, 1.0
    if successes:
        low = _bisect(lambda p: at_least(p) < tail)
    if successes < n:
        high = _bisect(lambda p: at_most(p) > tail)
    return WinRate(successes / n, low, high, n)


def _bisect(below: Callable[[float], bool]) -> float:
    """The point of 0 … 1 up to which ``below`` holds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return low


def best_of_n(scores: Sequence[Sequence[float]], judgements: Sequence[Sequence[float]], n: int) -> list[float]:
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
