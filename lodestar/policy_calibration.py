"""Is a policy as sure of its answers as it should be? On questions with several answers of which one is right.

The probability of an answer is its share among the answers that a question offers, softmax of their log-probs; the
answer that gets most is the policy's, and how often it is right against how sure the policy is of it is a reliability
diagram (Guo et al. 2017). RLHF can destroy what pretraining gave (OpenAI 2023, GPT-4 technical report, figure 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lodestar.errors import InvalidArgument
from lodestar.evaluation import bounded_mean
from lodestar.preference.calibration import ReliabilityBin, calibration_noise, expected_calibration_error

Floats = npt.NDArray[np.float64]
RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Answered:
    """One question: the probability of the likeliest answer, whether it is right, and the right answer's log-prob."""

    confidence: float
    right: bool
    nll: float
    """−log of the right answer's probability among those offered, nats."""


def answered(logprobs: Sequence[float], answer: int) -> Answered:
    """What a policy says to a question.

    Args:
        logprobs: of each answer, nats. answer: which is right.

    Raises:
        InvalidArgument: fewer than two answers, no such answer, or a log-prob that is not finite.
    """
    if len(logprobs) < 2 or not 0 <= answer < len(logprobs) or not np.isfinite(logprobs).all():
        raise InvalidArgument("logprobs", f"{list(logprobs)} with answer {answer}: two finite ones or more are needed")
    shifted_A = np.asarray(logprobs, dtype=np.float64) - max(logprobs)
    log_A = shifted_A - np.log(np.exp(shifted_A).sum())
    likeliest = int(log_A.argmax())
    return Answered(float(np.exp(log_A[likeliest])), likeliest == answer, float(-log_A[answer]))


def calibration(rows: Sequence[Answered], *, bins: int = 10, seed: int = 0) -> dict[str, Any]:
    """``accuracy`` and ``ece`` with 95% intervals, ``ece_of_chance``, ``confidence``, ``nll`` and ``bins``.

    The interval of the expected calibration error is the basic bootstrap's over questions: an error cannot be below 0
    and is biased upwards, which resampling doubles and this form takes off again; it is cut at 0. ``ece_of_chance`` is
    what a perfectly calibrated policy with these bins would get.

    Raises:
        InvalidArgument: no questions.
    """
    if not rows:
        raise InvalidArgument("rows", "none")
    found = reliability_of(rows, bins)
    error = expected_calibration_error(found)
    drawn = _resampled(rows, bins, seed)
    return {
        "n": len(rows),
        "accuracy": asdict(bounded_mean([float(row.right) for row in rows])),
        "confidence": float(np.mean([row.confidence for row in rows])),
        "nll": float(np.mean([row.nll for row in rows])),
        "ece": {"value": error, "low": _basic(error, drawn, 0.975), "high": _basic(error, drawn, 0.025)},
        "ece_of_chance": calibration_noise(found),
        "bins": [asdict(one) for one in found],
    }


def worsened(before: Sequence[Answered], after: Sequence[Answered], *, bins: int = 10, seed: int = 0) -> dict[str, Any]:
    """By how much the error grew, on the same questions: the difference and its bootstrap interval, pairs kept.

    Raises:
        InvalidArgument: not as many rows of both.
    """
    if not before or len(before) != len(after):
        raise InvalidArgument("after", f"{len(after)} questions, {len(before)} before")
    drawn_R = _resampled(after, bins, seed) - _resampled(before, bins, seed)
    errors = [expected_calibration_error(reliability_of(rows, bins)) for rows in (before, after)]
    low, high = (float(np.quantile(drawn_R, share)) for share in (0.025, 0.975))
    return {"value": errors[1] - errors[0], "low": low, "high": high}


def reliability_of(rows: Sequence[Answered], bins: int) -> list[ReliabilityBin]:
    """Bins of equal width from 0 to 1 by confidence; empty ones are left out."""
    parts: list[list[Answered]] = [[] for _ in range(bins)]
    for row in rows:
        parts[min(bins - 1, int(row.confidence * bins))].append(row)
    return [
        ReliabilityBin(
            low=i / bins,
            high=(i + 1) / bins,
            n=len(part),
            predicted=float(np.mean([row.confidence for row in part])),
            observed=float(np.mean([row.right for row in part])),
        )
        for i, part in enumerate(parts)
        if part
    ]


def _resampled(rows: Sequence[Answered], bins: int, seed: int) -> Floats:
    """Errors of RESAMPLES draws of as many questions; the same seed draws the same questions."""
    gap_N = np.array([row.confidence - row.right for row in rows])
    bin_N = np.array([min(bins - 1, int(row.confidence * bins)) for row in rows])
    rng = np.random.default_rng(seed)
    errors = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn_N = rng.integers(len(rows), size=len(rows))
        sums_B = np.bincount(bin_N[drawn_N], weights=gap_N[drawn_N], minlength=bins)
        errors[i] = np.abs(sums_B).sum() / len(rows)
    return errors


def _basic(value: float, drawn_R: Floats, share: float) -> float:
    return max(0.0, 2 * value - float(np.quantile(drawn_R, share)))
