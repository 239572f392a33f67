"""Whitening, and moments that run over a whole training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

EPSILON = 1e-8


def whiten(values_R: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1: (x − mean) / √(var + 1e-8), var over n.

    Called on the response tokens of a whole batch, as every rank holds it: whitening per minibatch or per rank would
    give equal tokens different advantages. The moments are taken in float64.
    """
    wide = values_R.double()
    centred = wide - wide.mean()
    return (centred / (centred.square().mean() + EPSILON).sqrt()).to(values_R.dtype)


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Mean and variance of everything seen so far (Chan et al. 1979's parallel update).

    ``RunningMoments().update(torch.tensor([1.0, 3.0]))`` has count 2, mean 2.0 and standard deviation 1.0.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def update(self, values: Tensor) -> RunningMoments:
        """The moments with ``values`` (any shape) added."""
        n = values.numel()
        if n == 0:
            return self
        wide = values.double()
        mean = float(wide.mean())
        squares = float((wide - mean).square().sum())
        total = self.count + n
        delta = mean - self.mean
        return RunningMoments(
            count=total,
            mean=self.mean + delta * n / total,
            squares=self.squares + squares + delta * delta * self.count * n / total,
        )

    @property
    def standard_deviation(self) -> float:
        """Population standard deviation; 1 before anything varies, so that dividing by it changes nothing."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > EPSILON else 1.0
