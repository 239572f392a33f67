"""Watches a run for over-optimisation: what the judges said of each step's responses, and the alarm.

The judge's numbers travel with the samples' heads. They are read here, after a step was trained, and nowhere else:
the trainer never sees them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from statistics import fmean, pstdev
from typing import Any

from lodestar.config import WatchConfig
from lodestar.ppo.watch import Alarm, Observation, over_optimised
from lodestar.records import Rollout

log = logging.getLogger(__name__)


class OverOptimisationWatch:
    """``watch.observe(rollouts, figures)`` after every step; ``watch.alarm`` is the first alarm of the run."""

    FIGURES = ("gold", "gold_std", "kl_root", "over_optimised")
    """What it adds to a step's metrics; the first two where there is a judge."""

    def __init__(self, config: WatchConfig, judge: str | None) -> None:
        """``judge``: the head that the watched source's scores come under; None without one."""
        self._config = config
        self._judge = judge
        self._history: list[Observation] = []
        self.alarm: Alarm | None = None
        self.alarm_step = 0

    @property
    def ends_run(self) -> bool:
        """Whether the judge raised the alarm and the run is to end at it; disagreement errs too often."""
        return self._config.stop and self.alarm is not None and self.alarm.kind == "gold"

    def observe(self, rollouts: Sequence[Rollout], figures: Mapping[str, float]) -> dict[str, float]:
        """Takes in a step that was trained on ``rollouts`` with these metrics; returns metrics of its own."""
        judged = [
            sample.heads[self._judge]
            for rollout in rollouts
            for sample in rollout.samples
            if self._judge is not None and self._judge in sample.heads
        ]
        found = {"kl_root": math.sqrt(max(figures["kl_sequence"], 0.0))}  # NaN stays NaN
        if judged:
            found |= {"gold": fmean(judged), "gold_std": pstdev(judged)}
        self._history.append(
            Observation(figures["score"], found.get("gold"), found.get("gold_std", 0.0), figures["score_disagreement"])
        )
        if self.alarm is None:
            self.alarm = over_optimised(
                self._history,
                window=self._config.window,
                significance=self._config.significance,
                growth=self._config.disagreement,
            )
            if self.alarm is not None:
                self.alarm_step = len(self._history)
                log.warning("over-optimisation at step %d: %s", self.alarm_step, self.alarm)
        return found | {"over_optimised": float(self.alarm is not None)}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain lists and numbers."""
        return {
            "history": [list(astuple(one)) for one in self._history],
            "alarm": self.alarm and list(astuple(self.alarm)),
            "alarm_step": self.alarm_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where ``state`` was taken."""
        self._history = [Observation(*row) for row in state["history"]]
        self.alarm = Alarm(*state["alarm"]) if state["alarm"] else None
        self.alarm_step = int(state["alarm_step"])


def source_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean score of every reward source and label over a step's samples, for metrics.jsonl."""
    heads: dict[str, list[float]] = {}
    for rollout in rollouts:
        for sample in rollout.samples:
            for name, value in sample.heads.items():
                heads.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in sorted(heads.items())}
