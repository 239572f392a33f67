"""Is a reward model as sure as it should be, and where is its zero?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TEMPERATURES = (0.01, 100.0)
"""The least and the largest that are fitted."""


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

    A pair and its mirror image say the same, so each is turned such that the first is favoured. Empty bins are
    left out.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for difference, label in zip(differences, labels, strict=True):
        probability = win_probability(abs(difference))
        observed = label if difference >= 0 else 1 - label
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


def fit_temperature(differences: Sequence[float], labels: Sequence[float]) -> float:
    """T > 0 that minimises the mean Bradley–Terry loss of differences / T (Guo et al. 2017), by Newton on 1/T.

    The loss is convex in 1/T. Where the scores say nothing or the opposite of the labels it has no minimum at T > 0,
    and the largest of TEMPERATURES is given; where they are always right, the least.
    """
    least, largest = TEMPERATURES
    inverse = 1.0
    for _ in range(100):
        slope = math.fsum(
            d * (win_probability(inverse * d) - label) for d, label in zip(differences, labels, strict=True)
        )
        bend = math.fsum(d * d * win_probability(inverse * d) * win_probability(-inverse * d) for d in differences)
        if bend == 0:
            break
        step = max(-0.5 * inverse, min(inverse, slope / bend))
        inverse = min(1 / least, max(1 / largest, inverse - step))
        if abs(step) < 1e-9:
            break
    return 1 / inverse


def calibration_offset(demonstration_scores: Sequence[float]) -> float:
    """What PPO subtracts from scores so that demonstrations are worth 0 on average (Stiennon et al. 2020)."""
    return math.fsum(demonstration_scores) / len(demonstration_scores)
