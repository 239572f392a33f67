"""How often a reward model is right, and how sure one may be of it: accuracies, paired differences, Kendall's tau."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from lodestar.evaluation import WinRate, bounded_mean


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

    Pairs of one prompt do not err on their own: where ``prompts`` are given, the interval is over prompts. It is
    honest for few of them (lodestar.evaluation.bounded_mean); of pairs that share none it is Clopper and Pearson's.
    """
    found = outcomes(differences, labels)
    names = range(len(found)) if prompts is None else prompts
    kept = [(value, name) for value, name in zip(found, names, strict=True) if value is not None]
    if not kept:
        return WinRate(0.5, 0.0, 1.0, 0)
    return bounded_mean([value for value, _ in kept], [name for _, name in kept])


def accuracy_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    labels: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    seed: int = 0,
) -> WinRate:
    """Accuracy of ``ours`` less that of ``theirs`` on the same pairs, with an interval over prompts.

    ``value``, ``low`` and ``high`` are differences, −1 … 1; the interval is lodestar.evaluation.bounded_mean's.
    """
    rows = [
        (prompt, a - b)
        for prompt, a, b in zip(prompts, outcomes(ours, labels), outcomes(theirs, labels), strict=True)
        if a is not None and b is not None
    ]
    if not rows:
        return WinRate(0.0, -1.0, 1.0, 0)
    return bounded_mean([value for _, value in rows], [prompt for prompt, _ in rows], low=-1.0, high=1.0, seed=seed)


def kendall_tau(differences: Sequence[float], labels: Sequence[float]) -> float | None:
    """τ_b (Kendall 1945) over the pairs that were judged, which need not be all pairs of some completions:

        (concordant − discordant) / √(pairs not tied by score · pairs not tied by label)

    ``differences`` are scores of the first less the second, ``labels`` say whether the first is better (above ½). None
    where one of the two has no pair but ties.
    """
    ours = [(difference > 0) - (difference < 0) for difference in differences]
    theirs = [(label > 0.5) - (label < 0.5) for label in labels]
    untied = sum(map(abs, ours)) * sum(map(abs, theirs))
    return sum(a * b for a, b in zip(ours, theirs, strict=True)) / math.sqrt(untied) if untied else None


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two does not vary."""
    return correlation(_ranks(x), _ranks(y))


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r; 0 where one of the two does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    scale = math.sqrt(math.fsum((a - mean_x) ** 2 for a in x) * math.fsum((b - mean_y) ** 2 for b in y))
    return covariance / scale if scale else 0.0


def equal_parts(values: Sequence[float], count: int) -> list[list[int]]:
    """Positions of the values in ``count`` parts from the least to the largest, as equal as ties allow.

    Equal values are in one part, so nothing hangs on the order in which they stand; a part may be empty.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    for position, rank in enumerate(_ranks(values)):
        parts[int((rank - 0.5) / len(values) * count)].append(position)
    return parts


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
