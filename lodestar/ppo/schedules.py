"""Learning-rate schedules as fractions of the peak."""

from __future__ import annotations


def linear_decay(step: int, steps: int) -> float:
    """1 at step 0, falling linearly to 0 at step ``steps``, and 0 after it."""
    return max(0.0, 1.0 - step / steps)
