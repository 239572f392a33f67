"""What a reader must know before they believe a run's figures: an alarm, a stage that a clock ended, steps not done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cautions(summary: Mapping[str, Any], planned_steps: int) -> list[str]:
    """Sentences, the gravest first; none where the run did all that was asked of it.

    Args:
        summary: summary.json.
        planned_steps: ``ppo.steps``.
    """
    found = []
    done, alarm = summary["steps"], summary.get("over_optimised_at")
    if alarm and done < planned_steps:
        found.append(
            f"The over-optimisation alarm of step {alarm} ended PPO after {done} of {planned_steps} steps: the score "
            "no longer meant what it should."
        )
    elif alarm:
        found.append(
            f"The over-optimisation alarm was raised at step {alarm}: from there on the score is not to be believed."
        )
    elif 0 < done < planned_steps:
        found.append(f"PPO ended after {done} of {planned_steps} steps.")
    cut = summary.get("cut_short") or {}
    if cut:
        said = ", ".join(f"{name} at {at['done']:,} of {at['total']:,} steps" for name, at in cut.items())
        found.append(f"max_seconds cut training short: {said}; all figures are of what was learned by then.")
    return found
