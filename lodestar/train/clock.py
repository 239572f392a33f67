"""A supervised stage's time, so that it ends within ``max_seconds`` with its last evaluation done."""

from __future__ import annotations

import math
import time


class Clock:
    """Measures a stage's steps and evaluations, and tells what there is still time for.

    Args:
        limit: seconds for the stage over all its starts; None has no limit.
        spent: seconds that earlier starts took.
        evaluation: seconds that the last evaluation took, 0.0 when there was none.
    """

    def __init__(self, limit: float | None, spent: float, evaluation: float) -> None:
        self._limit = math.inf if limit is None else limit
        self._began = time.monotonic() - spent
        self._lap = time.monotonic()
        self.evaluation = evaluation
        self._step = 0.0

    @property
    def seconds(self) -> float:
        """Spent over all starts."""
        return time.monotonic() - self._began

    @property
    def share(self) -> float:
        """How much of the time for steps is gone, 0 … 1: the limit without the last evaluation; 0.0 without a limit."""
        if math.isinf(self._limit):
            return 0.0
        left_for_steps = self._limit - self.evaluation
        return min(1.0, self.seconds / left_for_steps) if left_for_steps > 0 else 1.0

    def stepped(self) -> None:
        """A step ended; it began when the last step or evaluation did end."""
        self._step = self._mark()

    def evaluated(self) -> None:
        """An evaluation ended."""
        self.evaluation = self._mark()

    def allows(self, evaluations: int) -> bool:
        """Whether another step like the last and so many evaluations like the last fit into the limit."""
        return self.seconds + self._step + evaluations * self.evaluation <= self._limit

    def _mark(self) -> float:
        before, self._lap = self._lap, time.monotonic()
        return self._lap - before
