"""The learner's loop: one screen of verbs that drives a PPO run.

Consumes   rollouts, in whatever order the workers finish them.
Produces   tickets, weights, one line of metrics.jsonl and some of ledger.jsonl per step, checkpoints.
Waits for  the rollouts of the step in progress, and for a person while the run is paused.
Unblocked  by the workers; by the collector, which re-issues what the queue lost; by Resume and Stop.

A step is made of: collect → optimise → publish → record → checkpoint. Whatever kills the learner between two
checkpoints, the run goes on from the older one and does the steps since then again, under a new incarnation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from lodestar import metrics
from lodestar.config import LearnerConfig, PpoConfig
from lodestar.errors import NonFinite, RunPaused
from lodestar.records import Rollout, RunState, WeightManifest
from lodestar.rollouts.collector import Collector
from lodestar_services.learner.checkpoint import Checkpoints
from lodestar_services.learner.journal import Journal
from lodestar_services.learner.publisher import WeightPublisher
from lodestar_services.learner.status import Controls, StatusBoard
from lodestar_services.learner.trainer import Trainer
from lodestar_services.learner.watch import OverOptimisationWatch, source_means

log = logging.getLogger(__name__)


class LearnerLoop:
    """Runs the steps that are left. The training thread owns it."""

    def __init__(
        self,
        *,
        ppo: PpoConfig,
        section: LearnerConfig,
        collector: Collector,
        trainer: Trainer,
        publisher: WeightPublisher,
        journal: Journal,
        checkpoints: Checkpoints,
        watch: OverOptimisationWatch,
        digests: Mapping[str, str],
        keep_policy: Callable[[], None],
        board: StatusBoard,
        controls: Controls,
        step: int = 0,
    ) -> None:
        """``keep_policy`` writes what was trained to where its user finds it; called once the run is over."""
        self._ppo = ppo
        self._section = section
        self._collector = collector
        self._trainer = trainer
        self._publisher = publisher
        self._journal = journal
        self._checkpoints = checkpoints
        self._over_optimisation = watch
        self._digests = digests
        self._keep_policy = keep_policy
        self._board = board
        self._controls = controls
        self._step = step
        self._checkpointed = step if step else -1
        self.over = False
        """Whether the run, and not this process alone, has ended."""
        self._manifest: WeightManifest | None = None
        """Of the weights of the present step."""
        self._seconds: dict[str, float] = {}
        """By stage, of the step in progress."""

    def run(self) -> None:
        """Until the last step, the alarm where it ends the run, or until asked to stop.

        Raises:
            NonFinite: a loss, gradient or reward is not a number; the step is undone and its batch saved.
        """
        self._publish()
        if self._checkpointed < 0:
            self._checkpoint()  # what was drawn or asked for at the start, such as the offset, is not asked for again
        while self._step < self._ppo.steps and not (self._controls.stopping or self._over_optimisation.ends_run):
            self._hold()
            began = time.perf_counter()
            try:
                rollouts = self._collect()
                if rollouts is None:
                    break
                figures = self._optimise(rollouts)
            except RunPaused as reason:
                self._pause(str(reason))
                if self._publisher.refusals and not self._controls.stopping:
                    self._publish(full=True)
                continue
            except NonFinite:
                if self._trainer.intact:
                    self._checkpoint()
                raise
            self._step += 1
            self._publish()
            self._record(rollouts, figures, time.perf_counter() - began)
            if self._step % self._section.checkpoint_every == 0:
                self._checkpoint()
        self._checkpoint()
        self._collector.withdraw()
        self.over = not self._controls.leaving or self._step == self._ppo.steps or self._over_optimisation.ends_run
        if self.over:
            self._checkpoints.keep_newest()
            self._keep_policy()
            self._board.update(state=RunState.FINISHED, reason=self._ending())
        else:
            self._board.update(state=RunState.STOPPED, reason="told to leave; --resume goes on from its checkpoint")

    def _ending(self) -> str:
        """Why the run ended before its last step; empty when it did not."""
        if self._step == self._ppo.steps:
            return ""
        if self._over_optimisation.ends_run:
            return f"stopped at the over-optimisation alarm: {self._over_optimisation.alarm}"
        return "stopped on request"

    def _collect(self) -> list[Rollout] | None:
        """Offers the tickets that staleness allows and waits for the present step's; None when asked to stop."""
        self._board.update(state=RunState.COLLECTING, settled=0)
        with self._timed("collect"):
            return self._collector.collect(self._step, self._watch)

    def _watch(self, received: int) -> bool:
        """Called while rollouts arrive; False gives the step up.

        Raises:
            RunPaused: every policy server refuses the weights.
        """
        if received != self._board.status.settled:
            self._board.update(settled=received)
        self._publisher.keep_serving()
        if refusals := self._publisher.refusals:
            said = "; ".join(f"{name}: {why}" for name, why in sorted(refusals.items()))
            raise RunPaused(
                f"no policy server takes the weights of step {self._step} ({said}); Resume offers them anew"
            )
        if self._controls.checkpoint_wanted:
            self._checkpoint()
        return not self._controls.stopping

    def _optimise(self, rollouts: list[Rollout]) -> dict[str, float]:
        self._board.update(state=RunState.OPTIMISING, settled=self._ppo.tickets)
        with self._timed("optimise"):
            return self._trainer.step(rollouts)

    def _publish(self, *, full: bool = False) -> None:
        with self._timed("publish"):
            self._manifest = self._publisher.publish(self._trainer.policy, self._step, full=full)
        self._board.update(model=self._publisher.model_info(self._manifest))

    def _record(self, rollouts: list[Rollout], figures: dict[str, float], seconds: float) -> None:
        """The step counts from here on, as far as the next checkpoint carries it."""
        tokens = sum(len(sample.token_ids) for rollout in rollouts for sample in rollout.samples)
        figures["tokens_per_second"] = tokens / seconds
        figures |= self._over_optimisation.observe(rollouts, figures)
        metrics.TOKENS_TRAINED.inc(tokens)
        settled = self._collector.settle(self._step - 1)
        assert self._manifest is not None
        row = {
            "step": self._step,
            "incarnation": self._manifest.version.incarnation,
            "digest": self._manifest.version.digest,
            "time": time.time(),
            "seconds": self._seconds,
            "tickets": self._collector.totals(),
            "sources": source_means(rollouts),
            "offset": self._trainer.offset,
            **figures,
        }
        self._journal.record(row, settled)
        self._seconds = {}
        for name, gauge in metrics.TRAINING.items():
            if name in figures:
                gauge.set(figures[name])
        metrics.STEP.set(self._step)
        left = self._ppo.steps - self._step
        self._board.update(step=self._step, metrics=figures, eta_seconds=left * seconds)

    def _checkpoint(self) -> None:
        """Writes the state between two steps, once per step; answers whoever asked for it."""
        try:
            if self._checkpointed != self._step:
                with self._timed("checkpoint"):
                    self._checkpoints.save(self._step, self._state())
                self._checkpointed = self._step
        except Exception as error:
            self._controls.checkpointed(error)
            raise
        newest = self._checkpoints.latest()
        if newest is not None:
            self._controls.checkpointed(newest)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "trainer": self._trainer.state_dict(),
            "collector": self._collector.state_dict(),
            "watch": self._over_optimisation.state_dict(),
            "weights": self._manifest and asdict(self._manifest),
            "journal": self._journal.sync(),
            "digests": dict(self._digests),
        }

    def _pause(self, reason: str) -> None:
        log.error("the run is paused: %s", reason)
        self._controls.pause()
        self._board.update(state=RunState.PAUSED, reason=reason)
        self._hold()

    def _hold(self) -> None:
        """Waits while the run is paused; a checkpoint asked for meanwhile is written."""
        while (self._controls.paused or self._controls.checkpoint_wanted) and not self._controls.stopping:
            if self._controls.checkpoint_wanted:
                self._checkpoint()
                continue
            self._board.update(state=RunState.PAUSED, reason=self._board.status.reason or "paused on request")
            self._controls.wait_while_paused()
        self._board.update(reason="")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        metrics.STAGE_SECONDS.labels(stage).observe(seconds)
