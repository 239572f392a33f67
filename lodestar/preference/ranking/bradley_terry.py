"""Bradley–Terry strengths of K items by maximum likelihood, with ties by half votes or by Davidson's model.

    P(i beats j) = σ(θ_i − θ_j)                                   half votes: a tie is half a win for each
    P(i), P(tie), P(j) ∝ e^{(θ_i−θ_j)/2}, ν, e^{−(θ_i−θ_j)/2}     Davidson 1970

Half votes are right where a tie means two votes that disagree; on ties that people mean as "equal" they shrink true
gaps, and Davidson's model is right. A label that is neither win, tie nor loss is a share of ``count`` votes, and says
what those votes say one by one. Strengths are centred: they sum to 0. Their errors:

    information   inverse of the observed information, where the model is the data's (no ties, or Davidson)
    sandwich      H⁻¹ M H⁻¹ with M the sum of squared scores (Huber 1967): half votes make no likelihood of their own,
                  a tie has less variance than one vote. Squares of few comparisons cannot be told from 0, so those of
                  a pair with n are mixed with the p(1 − p) of votes, their bound, as n to z² = 3.84: the weights by
                  which Wilson's (1927) interval mixes a proportion's variance with its bound
    laplace       with a penalty: the curvature of the posterior under the normal prior that it stands for
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lodestar.errors import FailedPrecondition, InvalidArgument, NonFinite
from lodestar.evaluation import Z95
from lodestar.preference.ranking.separation import find_separation
from lodestar.preference.ranking.table import Floats, Table

Ties = Literal["half", "davidson"]
ITERATIONS = 200
TOLERANCE = 1e-10
"""Of the largest gradient per comparison."""
_GAP_22: Floats = np.array([[1.0, 0.0], [0.0, 0.0]])
"""A vote moves d alone, not log ν."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Strengths θ of the table's items and how sure they are."""

    items: tuple[str, ...]
    strength_K: Floats
    """θ, summing to 0; a difference of 1 is odds of e."""
    covariance_KK: Floats
    """Of θ; its rows sum to 0, as θ does."""
    errors: Literal["information", "sandwich", "laplace"]
    log_ties: float | None
    """log ν of Davidson's model; None under half votes, −∞ where there is no tie."""
    log_likelihood: float
    """At the maximum, the penalty left out."""

    @property
    def error_K(self) -> Floats:
        """Standard errors of the centred strengths."""
        error_K: Floats = np.sqrt(np.diag(self.covariance_KK).clip(min=0))
        return error_K

    def interval(self, item: int) -> tuple[float, float]:
        """95% interval of an item's strength, against the mean of all."""
        half = Z95 * float(self.error_K[item])
        return float(self.strength_K[item]) - half, float(self.strength_K[item]) + half

    def difference(self, first: int, second: int) -> tuple[float, float]:
        """θ_first − θ_second and its standard error, which the covariance between the two makes smaller."""
        contrast = np.zeros(len(self.items))
        contrast[first], contrast[second] = 1.0, -1.0
        return float(contrast @ self.strength_K), math.sqrt(max(0.0, float(contrast @ self.covariance_KK @ contrast)))


class _Point(NamedTuple):
    """The objective at some parameters (K strengths, then log ν where it is fitted)."""

    loss: float
    """Negative log-likelihood plus penalty."""
    likelihood: float
    gradient_P: Floats
    curvature_PP: Floats
    squares_PP: Floats
    """Expected outer products of the comparisons' scores, summed: see sandwich above."""


def fit(table: Table, *, ties: Ties = "half", penalty: float = 0.0) -> Fit:
    """The maximum of the likelihood, less ½·penalty·Σθ².

    Raises:
        InvalidArgument: a negative penalty, fewer than two items, or labels that Davidson's model has no outcome for.
        FailedPrecondition: without penalty, the maximum does not exist (see find_separation); the items are named.
    """
    if not (math.isfinite(penalty) and penalty >= 0):
        raise InvalidArgument("penalty", f"must be 0 or more, is {penalty}")
    if len(table.items) < 2:
        raise InvalidArgument("table", "needs two items at least")
    davidson = ties == "davidson"
    if davidson and not np.isin(table.label_C, (0.0, 0.5, 1.0)).all():
        raise InvalidArgument("label", "Davidson's model knows wins, ties and losses: 1, 0.5 and 0; use half votes")
    if not penalty and (separation := find_separation(table, davidson=davidson)):
        raise FailedPrecondition(separation.message)
    with_ties = davidson and table.ties > 0
    if with_ties and table.ties == table.comparisons:
        raise FailedPrecondition("every comparison is a tie: the propensity for ties has no finite estimate")
    x_P = np.zeros(len(table.items) + with_ties)
    point = _maximise(table, x_P, penalty, with_ties)
    # The strengths' sum is not identified: the pseudo-inverse is the covariance of centred strengths.
    bread_PP = np.linalg.pinv(point.curvature_PP, hermitian=True)
    sandwich = not davidson and table.ties > 0
    errors: Literal["information", "sandwich", "laplace"] = (
        "laplace" if penalty else "sandwich" if sandwich else "information"
    )
    covariance_PP = bread_PP @ point.squares_PP @ bread_PP if errors == "sandwich" else bread_PP
    count = len(table.items)
    centre_KK = np.eye(count) - 1 / count  # with a penalty the mean is at 0 by itself, but not without error
    log_ties = (float(x_P[-1]) if with_ties else -math.inf) if davidson else None
    return Fit(
        table.items,
        x_P[:count] - x_P[:count].mean(),
        centre_KK @ covariance_PP[:count, :count] @ centre_KK,
        errors,
        log_ties,
        point.likelihood,
    )


def _maximise(table: Table, x_P: Floats, penalty: float, with_ties: bool) -> _Point:
    """Newton's method with halved steps, in place; the objective is concave."""
    point = _at(table, x_P, penalty, with_ties)
    for _ in range(ITERATIONS):
        if np.abs(point.gradient_P).max() <= TOLERANCE * table.comparisons:
            return point
        step_P = np.linalg.lstsq(point.curvature_PP, point.gradient_P, rcond=None)[0]
        scale = 1.0
        while scale > 1e-9:
            found = _at(table, x_P - scale * step_P, penalty, with_ties)
            if found.loss < point.loss:
                break
            scale /= 2
        else:
            return point  # no lower in any digit: this is the minimum
        x_P -= scale * step_P
        point = found
    raise NonFinite(f"Bradley–Terry did not converge in {ITERATIONS} steps")


def _at(table: Table, x_P: Floats, penalty: float, with_ties: bool) -> _Point:
    """Multinomial logit of win, tie and loss with predictors d/2, log ν, −d/2, where d = θ_first − θ_second.

    Computed in (d, log ν) of each comparison first, [C, 2], and then spread over the parameters.
    """
    count = len(table.items)
    log_ties = x_P[-1] if with_ties else -np.inf
    gap_C = x_P[table.first_C] - x_P[table.second_C]
    predictor_CO = np.stack((gap_C / 2, np.full_like(gap_C, log_ties), -gap_C / 2), axis=1)
    top_C1 = predictor_CO.max(axis=1, keepdims=True)
    log_p_CO = predictor_CO - top_C1 - np.log(np.exp(predictor_CO - top_C1).sum(axis=1, keepdims=True))
    p_CO = np.exp(log_p_CO)
    if with_ties:
        outcome_CO = np.stack([table.label_C == one for one in (1.0, 0.5, 0.0)], axis=1).astype(np.float64)
    else:
        outcome_CO = np.stack((table.label_C, np.zeros_like(gap_C), 1 - table.label_C), axis=1)
        log_p_CO[:, 1] = 0.0
    by_predictor_O2 = np.array([[0.5, 0.0], [0.0, 1.0], [-0.5, 0.0]])
    score_C2 = (outcome_CO - p_CO) @ by_predictor_O2
    mean_C2 = p_CO @ by_predictor_O2
    spread_C22 = np.einsum("co,oa,ob->cab", p_CO, by_predictor_O2, by_predictor_O2)
    spread_C22 -= np.einsum("ca,cb->cab", mean_C2, mean_C2)
    prior_P = np.where(np.arange(len(x_P)) < count, penalty, 0.0)
    likelihood = float(table.count_C @ (outcome_CO * log_p_CO).sum(axis=1))
    squares_C22 = _variance(table, p_CO[:, 0])[:, None, None] * _GAP_22
    return _Point(
        loss=-likelihood + 0.5 * float(prior_P @ x_P**2),
        likelihood=likelihood,
        gradient_P=prior_P * x_P - _spread(table, table.count_C[:, None] * score_C2, len(x_P)),
        curvature_PP=_spread(table, table.count_C[:, None, None] * spread_C22, len(x_P)) + np.diag(prior_P),
        squares_PP=_spread(table, table.count_C[:, None, None] * squares_C22, len(x_P)),
    )


def _variance(table: Table, p_C: Floats) -> Floats:
    """Variance of a vote under half votes, [C], the same for all comparisons of a pair of items.

    The mean of (y − p)² over the pair's comparisons, mixed with its bound p(1 − p).
    """
    pairs, pair_C = np.unique(np.stack((table.first_C, table.second_C), axis=1), axis=0, return_inverse=True)
    share_C = np.where(
        table.label_C == 0.5, (0.5 - p_C) ** 2, table.label_C * (1 - p_C) ** 2 + (1 - table.label_C) * p_C**2
    )
    votes_Q = np.bincount(pair_C, weights=table.count_C, minlength=len(pairs))
    squares_Q = np.bincount(pair_C, weights=table.count_C * share_C, minlength=len(pairs))
    mixed_C: Floats = (squares_Q[pair_C] + Z95**2 * p_C * (1 - p_C)) / (votes_Q[pair_C] + Z95**2)
    return mixed_C


def _spread(table: Table, local: Floats, parameters: int) -> Floats:
    """Adds up what each comparison says of (d, log ν), [C, 2] or [C, 2, 2], over the parameters."""
    places_CJ = np.stack((table.first_C, table.second_C, np.full_like(table.first_C, parameters - 1)), axis=1)
    jacobian_J2 = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    if parameters == len(table.items):  # log ν is not fitted
        places_CJ, jacobian_J2 = places_CJ[:, :2], jacobian_J2[:2]
    if local.ndim == 2:
        total = np.zeros(parameters)
        np.add.at(total, places_CJ, local @ jacobian_J2.T)
        return total
    total = np.zeros((parameters, parameters))
    np.add.at(total, (places_CJ[:, :, None], places_CJ[:, None, :]), jacobian_J2 @ local @ jacobian_J2.T)
    return total
