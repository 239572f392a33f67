"""Slow, obvious float64 versions of PPO's mathematics, one token at a time in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """Equation 16 of the GAE paper as the sum it is, for one response."""
    length = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(length)]
    advantages = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length)) for t in range(length)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whiten(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(variance + 1e-8) for v in values]


def policy_loss(
    new: Sequence[float],
    old: Sequence[float],
    advantages: Sequence[float],
    weights: Sequence[float],
    clip: float,
    tokens: int,
) -> float:
    total = 0.0
    for log_p, log_q, a, w in zip(new, old, advantages, weights, strict=True):
        ratio = math.exp(log_p - log_q)
        total += w * max(-a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip))
    return total / tokens


def value_loss(
    values: Sequence[float], old: Sequence[float], returns: Sequence[float], clip: float, tokens: int
) -> float:
    total = 0.0
    for v, o, r in zip(values, old, returns, strict=True):
        held = o + min(max(v - o, -clip), clip)
        total += 0.5 * max((v - r) ** 2, (held - r) ** 2)
    return total / tokens
