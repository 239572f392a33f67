"""What lies behind a win rate: what is left of it at equal length, and how it differs between kinds of prompts.

    policy's reply beats the other's with probability σ(θ + φ · tanh(Δ / s))

is AlpacaEval 2's model (Dubois et al. 2024, arXiv:2404.04475, equation 2) for one pair of models: Δ is by how many
tokens the policy's reply is longer, s the standard deviation of Δ. The length-controlled win rate is σ(θ): what would
be won if every reply were as long as its rival. Their third term, a difficulty per instruction that many models share,
has nothing to be fitted on here. The fit is Firth's (1993, Biometrika 80), finite where one side always wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from lodestar.errors import InvalidArgument
from lodestar.evaluation import Z95, bounded_mean

if TYPE_CHECKING:
    from lodestar.asking import Judge, Reply
    from lodestar.records import Prompt

Floats = npt.NDArray[np.float64]
STEPS = 100
TOLERANCE = 1e-10
KIND = "kind"
"""Column of prompts that says their kind: plain, few-shot, user-based, or what a file calls it."""


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """``LengthControlled(0.71, low=0.66, high=0.76, n=512, length_effect=0.4, longer_by=3.1)``."""

    value: float
    """σ(θ): the win rate at equal length."""
    low: float
    high: float
    n: int
    length_effect: float
    """φ: above 0 where longer replies win."""
    longer_by: float
    """Mean tokens by which the policy's replies are longer."""


def length_controlled(outcomes: Sequence[float], longer_by: Sequence[float]) -> LengthControlled:
    """The win rate at equal length, with Wald's 95% interval of θ.

    Args:
        outcomes: 1 where the policy's reply won, ½ a tie, 0 lost. longer_by: its tokens less the other's.

    Raises:
        InvalidArgument: no outcomes, or not as many differences.
    """
    if not outcomes or len(outcomes) != len(longer_by):
        raise InvalidArgument("longer_by", f"{len(longer_by)} differences of {len(outcomes)} outcomes")
    won_N, apart_N = np.asarray(outcomes, dtype=np.float64), np.asarray(longer_by, dtype=np.float64)
    deviation = float(apart_N.std())
    columns = [np.ones(len(won_N))] + ([np.tanh(apart_N / deviation)] if deviation else [])
    design_NK = np.stack(columns, axis=1)
    fitted_K, covariance_KK = firth(design_NK, won_N)
    half = Z95 * math.sqrt(covariance_KK[0, 0])
    value, low, high = (float(expit(fitted_K[0] + shift)) for shift in (0.0, -half, half))
    effect = float(fitted_K[1]) if deviation else 0.0
    return LengthControlled(value, low, high, len(outcomes), effect, float(apart_N.mean()))


def firth(design_NK: Floats, outcomes_N: Floats) -> tuple[Floats, Floats]:
    """Logistic regression under Jeffreys' prior (Heinze & Schemper 2002): coefficients [K] and covariance [K, K].

    Newton's steps on the score Xᵀ(y − p + h(½ − p)), where h are the hat matrix's diagonal, halved while the penalised
    likelihood would fall.
    """
    beta_K: Floats = np.zeros(design_NK.shape[1])
    for _ in range(STEPS):
        p_N, information_KK = _state(design_NK, beta_K)
        weighted_NK = design_NK * (p_N * (1 - p_N))[:, None]
        hat_N = np.einsum("nk,kj,nj->n", design_NK, np.linalg.inv(information_KK), weighted_NK)
        step_K = np.linalg.solve(information_KK, design_NK.T @ (outcomes_N - p_N + hat_N * (0.5 - p_N)))
        now = _penalised(design_NK, outcomes_N, beta_K)
        while _penalised(design_NK, outcomes_N, beta_K + step_K) < now - TOLERANCE and np.abs(step_K).max() > TOLERANCE:
            step_K = step_K / 2
        beta_K = beta_K + step_K
        if np.abs(step_K).max() < TOLERANCE:
            break
    return beta_K, np.linalg.inv(_state(design_NK, beta_K)[1]).astype(np.float64)


def by_kind(kinds: Sequence[str], outcomes: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Kind → the win rate on its prompts, kinds in the order of their first prompt."""
    found: dict[str, list[float]] = {}
    for kind, outcome in zip(kinds, outcomes, strict=True):
        found.setdefault(kind, []).append(outcome)
    return {kind: asdict(bounded_mean(values)) for kind, values in found.items()}


def broken_down(
    prompts: Sequence[Prompt], replies: Sequence[Reply], others: Sequence[Reply], judge: Judge
) -> dict[str, Any]:
    """``length_controlled`` and, where prompts are of more than one kind, ``by_kind``: for evaluation.json."""
    pairs = [(ours.judged_by(judge), theirs.judged_by(judge)) for ours, theirs in zip(replies, others, strict=True)]
    outcomes = [0.5 if a == b else float(a > b) for a, b in pairs]
    longer = [ours.tokens - theirs.tokens for ours, theirs in zip(replies, others, strict=True)]
    found: dict[str, Any] = {"length_controlled": asdict(length_controlled(outcomes, longer))}
    kinds = [kind_of(prompt.text, prompt.columns) for prompt in prompts]
    return found | ({"by_kind": by_kind(kinds, outcomes)} if len(set(kinds)) > 1 else {})


def kind_of(prompt: str, columns: Mapping[str, Any]) -> str:
    """A prompt's kind: its column ``kind``; in the synthetic world the manner that it asks for; else plain."""
    from lodestar.data.world import parse

    if columns.get(KIND) is not None:
        return str(columns[KIND])
    try:
        return parse(prompt).tone
    except ValueError:
        return "plain"


def _state(design_NK: Floats, beta_K: Floats) -> tuple[Floats, Floats]:
    p_N: Floats = expit(design_NK @ beta_K)
    return p_N, design_NK.T @ (design_NK * (p_N * (1 - p_N))[:, None])


def _penalised(design_NK: Floats, outcomes_N: Floats, beta_K: Floats) -> float:
    """Log-likelihood and half the log-determinant of the information."""
    logits_N = design_NK @ beta_K
    likelihood = float(outcomes_N @ logits_N - np.logaddexp(0.0, logits_N).sum())
    sign, logdet = np.linalg.slogdet(_state(design_NK, beta_K)[1])
    return likelihood + 0.5 * float(logdet) if sign > 0 else -math.inf
