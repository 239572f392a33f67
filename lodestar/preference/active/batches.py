"""Several questions at once: the best by score, or the best that are not all the same question."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lodestar.errors import InvalidArgument
from lodestar.preference.active.choosers import Floats

Ints = npt.NDArray[np.int64]


def best(scores_N: Floats, count: int) -> Ints:
    """Indices of the ``count`` highest scores, best first; all of them where there are fewer. Of equals the earlier.

    Raises:
        InvalidArgument: a score is NaN, or count is below 1.
    """
    _check(scores_N, count)
    return np.argsort(-scores_N, kind="stable")[:count].astype(np.int64)


def diverse_batch(scores_N: Floats, features_NF: Floats, count: int, *, pool: int = 4) -> Ints:
    """``count`` indices out of the ``pool``·count highest scores, far from each other in the features.

    Greedy k-centre (Gonzalez 1985; batches of preference queries: Bıyık & Sadigh 2018, section 4): the highest score
    first, then again and again the candidate whose nearest chosen one is farthest away. A pair and its mirror image are
    the same question, so the distance of φ to ψ is the smaller of |φ − ψ| and |φ + ψ|, with φ the difference of the two
    replies' features.

    Raises:
        InvalidArgument: as :func:`best`; features of another number of candidates, or not finite.
    """
    if len(features_NF) != len(scores_N) or not np.isfinite(features_NF).all():
        raise InvalidArgument("features", f"must be finite, one row for each of the {len(scores_N)} scores")
    if pool < 1:
        raise InvalidArgument("pool", f"must be 1 or more, is {pool}")
    candidates_P = best(scores_N, pool * count)
    pool_PF = features_NF[candidates_P]
    squares_P = (pool_PF**2).sum(axis=1)
    nearest_P = np.full(len(pool_PF), np.inf)
    chosen: list[int] = []
    at = 0
    while len(chosen) < min(count, len(pool_PF)):
        chosen.append(at)
        product_P = np.abs(pool_PF @ pool_PF[at])  # |φ ∓ ψ|² = |φ|² + |ψ|² ∓ 2φ·ψ, the smaller of the two
        nearest_P = np.minimum(nearest_P, (squares_P + squares_P[at] - 2 * product_P).clip(min=0.0))
        nearest_P[chosen] = -1.0
        at = int(nearest_P.argmax())
    return candidates_P[chosen]


def _check(scores_N: Floats, count: int) -> None:
    if count < 1:
        raise InvalidArgument("count", f"must be 1 or more, is {count}")
    if np.isnan(scores_N).any():
        raise InvalidArgument("scores", "NaN among them")
