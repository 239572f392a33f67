"""AdamW and the learning rate of the supervised stages."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from lodestar.config import TrainingConfig


def adamw(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only (norms and biases have none)."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def warmup_cosine(progress: float, warmup: float) -> float:
    """The share of the peak rate at ``progress`` (0 … 1): linear from 0 to 1 over ``warmup``, then a cosine to 0.1."""
    if progress < warmup:
        return progress / warmup
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * rest))
