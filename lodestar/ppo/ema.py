"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Iterable[Tensor], *, decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights, in place, once per PPO iteration (InstructGPT: decay 0.992)."""
    for shadow, weight in zip(average, weights, strict=True):
        shadow.lerp_(weight.to(shadow.dtype), 1.0 - decay)
