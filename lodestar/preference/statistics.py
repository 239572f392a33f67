"""How often a reward model is right, and how sure one may be of it: accuracies, paired bootstrap, Kendall's tau."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from lodestar.evaluation import WinRate, wilson

RESAMPLES = 5000


def outcomes(differences: Sequence[float], labels: Sequence[float]) -> list[float | None]:
    """1 where the winner has the higher score, 0 where the loser has, ½ without an opinion; None for ties by label."""
    return [
        None if label == 0.5 else 0.5 if difference == 0 else float((difference > 0) == (label > 0.5))
        for difference, label in zip(differences, labels, strict=True)
    ]


def accuracy(
    differences: Sequence[float], labels: Sequence[float], prompts: Sequence[Hashable] | None = None
) -> WinRate:
    """Share of pairs whose winner has the higher score, with a 95% interval; ties by label are left out.

    The interval is Wilson's. Where ``prompts`` shows that several pairs share a prompt, and so do not err on their own,
    it is a percentile bootstrap over prompts.
    """
    found = outcomes(differences, labels)
    decided = [value for value in found if value is not None]
    if not decided:
        return WinRate(0.5, 0.0, 1.0, 0)
    rate = wilson(sum(decided), len(decided))
    if prompts is None or len(set(prompts)) == len(prompts) or rate.value in (0.0, 1.0):
        return rate
    kept = [(prompt, value) for prompt, value in zip(prompts, found, strict=True) if value is not None]
    low, high = _interval([value for _, value in kept], [prompt for prompt, _ in kept])
    return WinRate(rate.value, low, high, rate.n)


def accuracy_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    labels: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    seed: int = 0,
) -> WinRate:
    """Accuracy of ``ours`` less that of ``theirs`` on the same pairs, by a paired bootstrap over prompts.

    ``value``, ``low`` and ``high`` are differences, −1 … 1.
    """
    rows = [
        (prompt, a - b)
        for prompt, a, b in zip(prompts, outcomes(ours, labels), outcomes(theirs, labels), strict=True)
        if a is not None and b is not None
    ]
    if not rows:
        return WinRate(0.0, -1.0, 1.0, 0)
    values = [value for _, value in rows]
    low, high = _interval(values, [prompt for prompt, _ in rows], seed=seed)
    return WinRate(sum(values) / len(values), low, high, len(values))


def kendall_tau(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """τ_b (Kendall 1945): (concordant − discordant) / √(pairs not tied in one · pairs not tied in the other).

    None where one of the two never varies.
    """
    total, untied_a, untied_b = 0, 0, 0
    for i in range(len(scores)):
        for j in range(i):
            a = (scores[i] > scores[j]) - (scores[i] < scores[j])
            b = (values[i] > values[j]) - (values[i] < values[j])
            total, untied_a, untied_b = total + a * b, untied_a + abs(a), untied_b + abs(b)
    return total / math.sqrt(untied_a * untied_b) if untied_a and untied_b else None


def mean_with_interval(values: Sequence[float], *, seed: int = 0) -> WinRate:
    """A mean with its percentile-bootstrap 95% interval."""
    low, high = _interval(values, range(len(values)), seed=seed)
    return WinRate(sum(values) / len(values), low, high, len(values))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    return correlation(_ranks(x), _ranks(y))


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r; 0 where one of the two does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    scale = math.sqrt(math.fsum((a - mean_x) ** 2 for a in x) * math.fsum((b - mean_y) ** 2 for b in y))
    return covariance / scale if scale else 0.0


def _interval(values: Sequence[float], prompts: Sequence[Hashable], *, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean, resampling prompts with all their values (Efron 1979)."""
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    rows = np.array([index[prompt] for prompt in prompts])
    sums = np.bincount(rows, weights=np.asarray(values, dtype=np.float64), minlength=len(index))
    counts = np.bincount(rows, minlength=len(index)).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_resampled(rng, sums, counts) for _ in range(RESAMPLES // 500)])
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return low, high


def _resampled(rng: np.random.Generator, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """500 means; in pieces, for memory."""
    chosen = rng.integers(len(sums), size=(500, len(sums)))
    means: np.ndarray = sums[chosen].sum(1) / counts[chosen].sum(1)
    return means


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties sharing their mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for position in range(start, end + 1):
            ranks[order[position]] = (start + end) / 2 + 1
        start = end + 1
    return ranks
