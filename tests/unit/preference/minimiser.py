"""The minimum of a smooth loss, to as many digits as float64 has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def minimum(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Where the loss of ``size`` numbers is least, from zeros."""
    x = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()
