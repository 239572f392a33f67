"""Scores to quantiles: Quark's quantisation (Lu et al. 2022, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lodestar.errors import InvalidArgument


def quantised(scores: Sequence[float], quantiles: int) -> list[int]:
    """The quantile of each score, 0 … K − 1, K − 1 the highest; equally many in each where no two scores are equal.

    Equal scores share their quantile, that of the middle of their ranks: one token for one quality. A reward of few
    values fills fewer quantiles than K, and one that is the same for all fills one.

    Raises:
        InvalidArgument: fewer than 2 quantiles, or a score that is not a number.
    """
    if quantiles < 2:
        raise InvalidArgument("quantiles", f"must be 2 at least, is {quantiles}")
    if any(score != score for score in scores):
        raise InvalidArgument("scores", "NaN among them")
    found = [0] * len(scores)
    rank = 0
    for _, group in groupby(sorted(range(len(scores)), key=scores.__getitem__), key=scores.__getitem__):
        tied = list(group)
        middle = rank + len(tied) / 2  # of the ranks' interval [rank, rank + tied)
        for place in tied:
            found[place] = min(quantiles - 1, int(quantiles * middle / len(scores)))
        rank += len(tied)
    return found
