"""A mean over seeds and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds with its 95% interval: ``Mean(0.81, 0.78, 0.84)``."""

    value: float
    low: float
    high: float


def over_seeds(values: Sequence[float], *, least: float = -math.inf, most: float = math.inf) -> Mean:
    """Student's 95% interval of the mean of two seeds' figures or more, cut where the figure's range ends.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("one seed gives no interval over seeds")
    mean = fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Mean(mean, max(least, mean - half), min(most, mean + half))
