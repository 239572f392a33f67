"""Is a reward model as sure as it should be, and where is its zero?"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, stdtrit

SPAN = 1e6
"""How far from one over the mean difference 1/T is looked for: beyond it a probability is ½, 0 or 1 in every digit."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs whose predicted probability fell between low and high."""

    low: float
    high: float
    n: int
    predicted: float
    """Mean predicted probability that the favoured completion wins."""
    observed: float
    """How often it won; ties count ½."""


def win_probability(difference: float) -> float:
    """σ(s₁ − s₂): Bradley and Terry's probability that the first wins."""
    if difference >= 0:
        return 1 / (1 + math.exp(-difference))
    return math.exp(difference) / (1 + math.exp(difference))


def reliability(differences: Sequence[float], labels: Sequence[float], bins: int = 10) -> list[ReliabilityBin]:
    """Predicted against observed wins of the completion that the model favours, in equal bins from ½ to 1.

    A pair and its mirror image say the same, so each is turned such that the first is favoured; where neither is, both
    ways round count half. Empty bins are left out.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for difference, label in zip(differences, labels, strict=True):
        probability = win_probability(abs(difference))
        observed = 0.5 if difference == 0 else label if difference > 0 else 1 - label
        found[min(bins - 1, int((probability - 0.5) * 2 * bins))].append((probability, observed))
    return [
        ReliabilityBin(
            low=0.5 + i / (2 * bins),
            high=0.5 + (i + 1) / (2 * bins),
            n=len(pairs),
            predicted=sum(predicted for predicted, _ in pairs) / len(pairs),
            observed=sum(observed for _, observed in pairs) / len(pairs),
        )
        for i, pairs in enumerate(found)
        if pairs
    ]


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Σ n_b·|predicted_b − observed_b| / Σ n_b (Naeini et al. 2015); 0 is perfect."""
    return sum(b.n * abs(b.predicted - b.observed) for b in bins) / sum(b.n for b in bins)


def calibration_noise(bins: Sequence[ReliabilityBin]) -> float:
    """What the expected calibration error would be of a perfectly calibrated model with the same bins.

    A bin of n votes strays from its probability p by √(p(1 − p)/n), of which the mean magnitude is √(2/π) times that;
    an error near this says nothing against a model (Roelofs et al. 2022 on this bias). Ties stray less.
    """
    strays = (b.n * math.sqrt(2 / math.pi * b.predicted * (1 - b.predicted) / b.n) for b in bins)
    return math.fsum(strays) / sum(b.n for b in bins)


@dataclass(frozen=True, slots=True)
class Temperature:
    """What a model's scores are divided by so that its probabilities are as sure as they should be.

    ``Temperature(2.1, low=1.6, high=2.9)``. ∞ says that the scores say nothing, or the opposite; 0 that they were
    always right.
    """

    value: float
    """The likeliest, 0 … ∞."""
    low: float
    high: float
    """95% interval; 0 and ∞ where the data exclude no small and no large ones."""

    @property
    def supported(self) -> bool:
        """Whether the data know it from both ends and from 1, which leaves the scores as they are."""
        return 0 < self.low <= self.high < math.inf and not self.low <= 1 <= self.high


def fit_temperature(
    differences: Sequence[float], labels: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Temperature:
    """T > 0 that minimises the mean Bradley–Terry loss of differences / T (Guo et al. 2017), with its interval.

    The loss is convex in 1/T, so its slope Σ d·(σ(d/T) − y) has one root, or none at T > 0. The interval holds every T
    whose slope may be 0 by a score test (Rao 1948) with Student's t of groups − 1 degrees. Its variance is the sum of
    squares over ``groups``, the pairs of a prompt together, or where that is more what the model says of pairs that
    are one vote within a group: rare large errors do not show in the squares until there is one.
    """
    d_P, label_P = np.asarray(differences, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    names = range(len(d_P)) if groups is None else groups
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group_P = np.array([index[name] for name in names])
    unit = float(np.abs(d_P).mean()) if len(d_P) else 0.0
    if unit == 0.0:
        return Temperature(math.inf, 0.0, math.inf)
    d_P = d_P / unit

    def slope(inverse: float) -> float:
        return float(d_P @ (expit(inverse * d_P) - label_P))

    allowed = float(stdtrit(len(index) - 1, 0.975)) if len(index) > 1 else math.inf

    def inside(inverse: float) -> bool:
        p_P = expit(inverse * d_P)
        sums_G = np.bincount(group_P, weights=d_P * (p_P - label_P))
        spreads_G = np.bincount(group_P, weights=np.abs(d_P) * np.sqrt(p_P * (1 - p_P)))
        variance = max(float(sums_G @ sums_G), float(spreads_G @ spreads_G))
        return abs(float(sums_G.sum())) <= allowed * math.sqrt(variance)

    least, most = 1 / SPAN, SPAN
    if slope(least) >= 0:
        value = math.inf
    elif slope(most) <= 0:
        value = 0.0
    else:
        value = unit / _edge(lambda inverse: slope(inverse) < 0, least, most)
    tried: list[float] = np.geomspace(least, most, 400).tolist()
    within = [i for i, inverse in enumerate(tried) if inside(inverse)]
    if not within:  # not even a coin's toss is allowed: the scores say the opposite
        return Temperature(value, value, value)
    first, last = within[0], within[-1]
    high = math.inf if first == 0 else unit / _edge(lambda u: not inside(u), tried[first - 1], tried[first])
    low = 0.0 if last == len(tried) - 1 else unit / _edge(inside, tried[last], tried[last + 1])
    return Temperature(value, low, high)


def _edge(before: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``before`` ceases to hold between two positive numbers."""
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if before(middle) else (low, middle)
    return low


def calibration_offset(demonstration_scores: Sequence[float]) -> float:
    """What PPO subtracts from scores so that demonstrations are worth 0 on average (Stiennon et al. 2020)."""
    return math.fsum(demonstration_scores) / len(demonstration_scores)
