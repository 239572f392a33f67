"""Puts a learner together: models, data, queue, publisher, and what a checkpoint brings back."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lodestar.config import LearnerTask, flat
from lodestar.cores import compute_threads
from lodestar.data.files import read_prompts
from lodestar.data.rows import encode_prompts
from lodestar.errors import ConfigError, FailedPrecondition, QueueUnavailable
from lodestar.files import digest
from lodestar.model.loading import load_tokenizer, vocabulary_size
from lodestar.model.tokenizers import tokenizer_hash
from lodestar.model.weights import save_model
from lodestar.queue.redis import RedisLearnerQueue
from lodestar.records import Prompt
from lodestar.rollouts.collector import Collector
from lodestar.rollouts.incarnation import Incarnation
from lodestar.rollouts.tickets import TicketSchedule
from lodestar_services.learner.calibration import calibration_offset
from lodestar_services.learner.checkpoint import (
    Checkpoints,
    check_weights,
    refuse_changes,
)
from lodestar_services.learner.journal import Journal
from lodestar_services.learner.loop import LearnerLoop
from lodestar_services.learner.models import Start, make_trainer
from lodestar_services.learner.probes import probed_tokens
from lodestar_services.learner.publisher import WeightPublisher
from lodestar_services.learner.ranks import Orders, join
from lodestar_services.learner.status import Controls, StatusBoard
from lodestar_services.learner.trainer import Trainer, make_deterministic
from lodestar_services.learner.watch import OverOptimisationWatch

log = logging.getLogger(__name__)


class Learner:
    """One start of the learner. ``learner.build(); learner.run()`` on the training thread."""

    def __init__(self, task: LearnerTask, board: StatusBoard, controls: Controls) -> None:
        self._task = task
        self._board = board
        self._controls = controls
        self._open = ExitStack()
        self._orders: Orders
        self._loop: LearnerLoop
        self._queue: RedisLearnerQueue
        self.over = False
        """Whether the run has ended, and not this start of the learner alone."""

    def build(self) -> None:
        """Loads everything, resumes from the newest checkpoint when asked to, and opens the queue.

        Raises:
            FailedPrecondition: another learner drives the run, or (ResumeRefused) something changed since.
            ConfigError, ModelError, DataError: the run cannot start as it is configured.
        """
        task, ppo = self._task, self._task.ppo
        join()
        self._orders = Orders()
        self._open.enter_context(_sole_learner(task.state))
        if task.deterministic:
            make_deterministic()
        else:
            compute_threads(task.section.threads)
        self._tokenizer = load_tokenizer(task.tokenizer or task.policy)
        prompts = self._prompts()
        digests = self._digests()
        checkpoints = Checkpoints(task.state / "checkpoints", task.section.keep_checkpoints)
        state = self._saved(checkpoints, digests)
        begun = Incarnation.begin(task.state, task.folder)
        incarnation = begun.id

        self._queue = self._open_queue(begun)
        collector = Collector(
            self._queue,
            TicketSchedule(prompts, ppo, run=task.run, seed=task.seed),
            incarnation=incarnation,
            max_failed_fraction=ppo.max_failed_fraction,
            reconcile_seconds=task.queue.reconcile_seconds,
            vocabulary=vocabulary_size(task.policy),
        )
        self._trainer = self._make_trainer(prompts, state)
        watch = OverOptimisationWatch(ppo.watch, task.watched)
        if state:
            self._trainer.load_state_dict(state["trainer"])
            check_weights(state, self._trainer.policy)
            collector.load_state_dict(state["collector"])
            watch.load_state_dict(state["watch"])
        publisher = WeightPublisher(
            task.state / "weights",
            run=task.run,
            incarnation=incarnation,
            tokenizer_hash=tokenizer_hash(self._tokenizer),
            section=task.section,
            probed=probed_tokens(prompts, self._trainer.policy.config),
        )
        self._open.callback(publisher.close)
        publisher.serve(task)
        journal = Journal(task.figures, state["journal"] if state else None)
        self._open.callback(journal.close)
        self._loop = LearnerLoop(
            ppo=ppo,
            section=task.section,
            collector=collector,
            trainer=self._trainer,
            publisher=publisher,
            journal=journal,
            checkpoints=checkpoints,
            watch=watch,
            digests=digests,
            keep_policy=self._keep_policy,
            board=self._board,
            controls=self._controls,
            step=state["step"] if state else 0,
        )
        self._board.update(step=state["step"] if state else 0)

    def run(self) -> None:
        """The loop, on the training thread."""
        try:
            self._loop.run()
            self._orders.give(None)
            self.over = self._loop.over
            if self.over:
                self._leave_queue()
        finally:
            self.close()

    def _keep_policy(self) -> None:
        """Writes the trained policy, its moving average when there is one, where it is asked for."""
        policy = self._trainer.policy
        if average := self._trainer.average_weights():
            with torch.no_grad():
                for name, parameter in policy.named_parameters():
                    parameter.copy_(average[name])
        save_model(policy, self._tokenizer, self._task.output)

    def close(self) -> None:
        """Gives back the queue, the weights server and the lock."""
        self._open.close()

    def _open_queue(self, begun: Incarnation) -> RedisLearnerQueue:
        """Reaches Redis and takes the run's name there; while that takes time, the status says why."""
        section = self._task.queue
        queue = RedisLearnerQueue(
            self._redis_url(),
            section.outage_seconds,
            password=section.password(),
            tls=self._task.listening.tls,
            waiting=self._waits_for_queue,
        )
        self._open.callback(queue.close)
        queue.open(self._task.run, begun.id, owner=begun.owner, where=begun.where)
        return queue

    def _waits_for_queue(self, reason: str) -> bool:
        """Called while Redis does not serve us; False when this process is to end."""
        self._board.update(reason=reason)
        return not self._controls.stopping

    def _leave_queue(self) -> None:
        """A run that is over leaves nothing in Redis."""
        try:
            self._queue.erase()
        except QueueUnavailable as error:
            log.warning("what the run holds in Redis could not be deleted: %s", error)

    def _redis_url(self) -> str:
        url = self._task.endpoints.redis or self._task.queue.url
        if url is None:
            raise ConfigError("services.queue.url", "the learner needs a Redis; give --redis or services.queue.url")
        return url

    def _prompts(self) -> list[Prompt]:
        prompts = read_prompts(self._task.prompts)
        encoded = encode_prompts(self._tokenizer, [prompt.text for prompt in prompts])
        return [replace(prompt, token_ids=ids) for prompt, ids in zip(prompts, encoded, strict=True)]

    def _digests(self) -> dict[str, str]:
        """What the run depends on: each option by its dotted name, prompts, tokenizer, models, the reward's parts."""
        task = self._task
        files = {"prompts": task.prompts, "demonstrations": task.demonstrations, "text": task.text}
        models = {"start model": task.policy, "reference model": task.reference}
        return {
            **{f"ppo.{key}": json.dumps(value) for key, value in flat(task.ppo.model_dump(mode="json")).items()},
            "seed": str(task.seed),
            "deterministic": str(task.deterministic),
            "computation": f"{task.dtype}",
            **{name: digest(path) for name, path in files.items() if path is not None},
            "tokenizer": tokenizer_hash(self._tokenizer),
            **{name: digest(Path(path)) if Path(path).exists() else path for name, path in models.items()},
            **{f"reward, {name}": value for name, value in task.sources.items()},
        }

    def _saved(self, checkpoints: Checkpoints, digests: dict[str, str]) -> dict[str, Any] | None:
        found = checkpoints.load_newest()
        if found is None:
            return None
        newest, state = found
        saved = dict(state["digests"])
        if int(digests["ppo.steps"]) > int(saved["ppo.steps"]):  # more were asked for
            saved["ppo.steps"] = digests["ppo.steps"]
        refuse_changes(saved, digests)
        log.info("resuming from %s", newest)
        return state

    def _make_trainer(self, prompts: list[Prompt], state: dict[str, Any] | None) -> Trainer:
        task = self._task
        if state:
            offset = float(state["trainer"]["offset"])
        else:
            offset = calibration_offset(task.ppo, task.demonstrations, prompts, task.endpoints, task.listening.tls)
        self._orders.give(Start(offset, f"step-{state['step']:06d}" if state else None))
        return make_trainer(task, self._tokenizer, offset, orders=self._orders)


@contextmanager
def _sole_learner(folder: Path) -> Iterator[None]:
    """Holds the run's lock, which the system releases however this process ends.

    Raises:
        FailedPrecondition: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "learner.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"another learner drives the run in {folder}; stop it first") from None
        yield
