"""What an answer would teach: one score per candidate pair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lodestar.errors import InvalidArgument

Floats = npt.NDArray[np.float64]


def at_random(candidates: int, rng: np.random.Generator) -> Floats:
    """[N] uniform numbers: what every chooser must beat."""
    return rng.random(candidates)


def disagreement(margins_NM: Floats) -> Floats:
    """Standard deviation over the members of P(first is better), [N] (query by committee: Seung et al. 1992; of reward
    ensembles: Christiano et al. 2017, section 2.2.4).

    Raises:
        InvalidArgument: fewer than two members, or a margin that is not finite.
    """
    deviation_N: Floats = probabilities(margins_NM).std(axis=1)
    return deviation_N


def bald(margins_NM: Floats) -> Floats:
    """Mutual information of the answer and the model, nats, [N] (Houlsby et al. 2011, equation 2):

        H[mean_m p_m] − mean_m H[p_m],    p_m = σ(margin_m)

    The second term is what sets it apart from uncertainty: an answer that is a toss-up under every member teaches
    nothing. Raises as :func:`disagreement`.
    """
    p_NM = probabilities(margins_NM)
    score_N: Floats = _entropy(p_NM.mean(axis=1)) - _entropy(p_NM).mean(axis=1)
    return score_N.clip(min=0.0)


def volume_removal(margins_NS: Floats) -> Floats:
    """What the less helpful of the two answers removes from the posterior, as a share of it, [N] (Sadigh et al. 2017,
    equations 8 and 11):

        min(mean_s [1 − f(m_s)], mean_s [1 − f(−m_s)]),    f(m) = min(1, e^m)

    ``margins_NS`` are w_s·φ of samples w_s of the posterior of a linear reward. f is the paper's likelihood; the
    answers themselves may be modelled otherwise. Raises as :func:`disagreement`.
    """
    _check(margins_NS)
    first_NS, second_NS = (1 - np.exp(np.minimum(sign * margins_NS, 0.0)) for sign in (1, -1))
    score_N: Floats = np.minimum(first_NS.mean(axis=1), second_NS.mean(axis=1))
    return score_N


CHOOSERS = {"disagreement": disagreement, "bald": bald, "volume_removal": volume_removal}
"""By the name that a configuration gives; ``random`` is at_random, which looks at no model."""


def probabilities(margins_NM: Floats) -> Floats:
    """P(first is better) under each member, σ(margin), [N, M]. Raises as :func:`disagreement`."""
    _check(margins_NM)
    p_NM: Floats = np.exp(-np.logaddexp(0.0, -margins_NM))
    return p_NM


def _check(margins_NM: Floats) -> None:
    if margins_NM.ndim != 2 or margins_NM.shape[1] < 2:
        raise InvalidArgument("margins", f"must be [candidates, two or more members], is {list(margins_NM.shape)}")
    if not np.isfinite(margins_NM).all():
        raise InvalidArgument("margins", "NaN or infinity among them")


def _entropy(p: Floats) -> Floats:
    """Of a coin, nats."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    entropy: Floats = -(q * np.log(q) + (1 - q) * np.log1p(-q))
    return entropy
