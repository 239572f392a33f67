"""When does the score stop to mean what it should? An alarm on over-optimisation of a proxy reward.

Gao, Schulman and Hilton (2023) train policies against a proxy reward model and judge them by a gold one: with growing
distance d = √KL the proxy's score goes on rising, while gold follows d·(α − β·log d), so it rises, peaks and falls.
The signature of hacking is therefore a pair of opposite trends, and that is what is tested:

    gold            the score rises and the held-out judge falls, by more than a tenth of its spread between responses
    disagreement    without a judge: the score rises and the ensemble's disagreement rises, to ``growth`` times what it
                    was in the run's first steps (members agree where they were trained: Coste et al. 2023). A hint
                    only: members that share a blind spot agree about it (Eisenstein et al. 2023), and honest runs
                    too go where their members know less. docs/log.md has the measured rates of both.

Each trend is Mann's (1945) test of Kendall's S against time, one-sided, over the last n steps for n of 1, 2 and 4
windows; ``significance`` is divided by their number. Both trends must be significant over the same stretch. Batch noise
moves an honest proxy and its judge together, so on a healthy run both tests together err far less often than one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist, fmean, median
from typing import Literal

STRETCHES = (1, 2, 4)
"""Multiples of the window that are tested."""
SMALLEST_FALL = 0.1
"""Of the judge, in standard deviations between the responses of a batch: less is not worth waking anybody."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one PPO step showed: ``Observation(score=1.2, gold=0.9, gold_spread=0.5, disagreement=0.1)``."""

    score: float
    """Mean proxy score of the batch."""
    gold: float | None = None
    """Mean of the held-out judge; None without one."""
    gold_spread: float = 0.0
    """Standard deviation of the judge between the batch's responses."""
    disagreement: float = 0.0
    """Mean standard deviation over the reward ensemble; 0 for a single model."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """``Alarm("gold", steps=20, p_score=1e-4, p_against=2e-3)``: over the last 20 steps."""

    kind: Literal["gold", "disagreement"]
    steps: int
    """Length of the stretch."""
    p_score: float
    """One-sided p-value of the score's rise."""
    p_against: float
    """Of the judge's fall, or the disagreement's rise."""

    def __str__(self) -> str:
        what = "the held-out judge fell" if self.kind == "gold" else "the reward ensemble came to disagree"
        return f"over {self.steps} steps the score rose (p {self.p_score:.1g}) while {what} (p {self.p_against:.1g})"


def over_optimised(
    history: Sequence[Observation], *, window: int = 10, significance: float = 0.01, growth: float = 1.5
) -> Alarm | None:
    """The alarm at the last step of ``history`` (all steps of the run so far, in order), or None.

    With a judge, the judge decides; the disagreement speaks only where there is none.
    """
    level = significance / len(STRETCHES)
    for steps in (window * times for times in STRETCHES):
        if len(history) < steps:
            return None
        last = history[-steps:]
        p_score = rise([one.score for one in last])
        if p_score > level:
            continue
        gold = [one.gold for one in last if one.gold is not None]
        if len(gold) == steps:
            p_gold = rise([-value for value in gold])
            fall = -(steps - 1) * slope(gold)
            if p_gold <= level and fall > SMALLEST_FALL * fmean(one.gold_spread for one in last):
                return Alarm("gold", steps, p_score, p_gold)
        elif not gold and len(history) >= steps + window:
            disagreement = [one.disagreement for one in last]
            before = fmean(one.disagreement for one in history[:window])
            p_growth = rise(disagreement)
            if p_growth <= level and fmean(disagreement[-window:]) > growth * before > 0:
                return Alarm("disagreement", steps, p_score, p_growth)
    return None


def rise(values: Sequence[float]) -> float:
    """One-sided p-value of Mann's test that a series rises: S = Σ_{i<j} sign(x_j − x_i), normal with ties corrected.

    Variance of S under no trend: [n(n − 1)(2n + 5) − Σ_t t(t − 1)(2t + 5)] / 18 over groups of t equal values; 1 is
    taken off S, half a step of it, for continuity. 1.0 for values that are all equal.
    """
    n = len(values)
    s = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    ordered = sorted(values)
    runs, run = [], 1
    for one, other in pairwise([*ordered, math.nan]):
        if one == other:
            run += 1
        else:
            runs.append(run)
            run = 1
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in runs)) / 18
    if variance <= 0:
        return 1.0
    return 1 - NormalDist().cdf((s - 1) / math.sqrt(variance))


def slope(values: Sequence[float]) -> float:
    """Per step: the median of the slopes between all pairs (Theil 1950; Sen 1968), which outliers do not move."""
    return median((later - earlier) / (j - i) for (i, earlier), (j, later) in combinations(enumerate(values), 2))
