"""Puts a learner together: models, data, queue, publisher, and what a checkpoint brings back."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from lodestar.config import RunConfig, ServeOptions, deciding_options
from lodestar.data.files import DataFiles, read_prompts
from lodestar.data.rows import encode_prompts
from lodestar.errors import ConfigError, FailedPrecondition, QueueUnavailable
from lodestar.layout import RunFolder
from lodestar.model.loading import load_tokenizer, vocabulary_size
from lodestar.model.tokenizers import tokenizer_hash
from lodestar.model.weights import save_model, sync
from lodestar.queue.redis import RedisLearnerQueue
from lodestar.records import Prompt
from lodestar.rewards.functions import source_digest
from lodestar_services.learner.calibration import calibration_offset
from lodestar_services.learner.checkpoint import (
    Checkpoints,
    check_weights,
    folder_digest,
    refuse_changes,
)
from lodestar_services.learner.collector import Collector
from lodestar_services.learner.journal import Journal
from lodestar_services.learner.loop import LearnerLoop
from lodestar_services.learner.models import Start, make_trainer
from lodestar_services.learner.publisher import WeightPublisher
from lodestar_services.learner.ranks import Orders, join
from lodestar_services.learner.status import Controls, StatusBoard
from lodestar_services.learner.tickets import TicketSchedule
from lodestar_services.learner.trainer import Trainer, make_deterministic
from lodestar_services.learner.watch import OverOptimisationWatch

log = logging.getLogger(__name__)


class Learner:
    """One start of the learner. ``learner.build(); learner.run()`` on the training thread."""

    def __init__(self, options: ServeOptions, board: StatusBoard, controls: Controls) -> None:
        self._options = options
        self._config: RunConfig = options.config
        self._folder = RunFolder(options.run_dir)
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
        config, ppo = self._config, self._config.ppo
        join()
        self._orders = Orders()
        self._open.enter_context(_sole_learner(self._folder))
        torch.set_num_threads(config.learner.threads)
        if config.deterministic:
            make_deterministic()
        path = self._options.start_model
        self._tokenizer = load_tokenizer(path)
        prompts = self._prompts()
        digests = self._digests(Path(path))
        checkpoints = Checkpoints(self._folder.checkpoints, config.learner.keep_checkpoints)
        state = self._saved(checkpoints, digests)
        incarnation = self._begin_incarnation()

        self._queue = self._open_queue(incarnation)
        schedule = TicketSchedule(prompts, ppo, run=config.name, seed=config.seed)
        collector = Collector(
            self._queue,
            schedule,
            incarnation=incarnation,
            max_failed_fraction=ppo.max_failed_fraction,
            reconcile_seconds=config.queue.reconcile_seconds,
            vocabulary=vocabulary_size(path),
        )
        self._trainer = self._make_trainer(path, state)
        watch = OverOptimisationWatch(ppo.watch, config.watched_source)
        if state:
            self._trainer.load_state_dict(state["trainer"])
            check_weights(state, self._trainer.policy)
            collector.load_state_dict(state["collector"])
            watch.load_state_dict(state["watch"])
        publisher = WeightPublisher(
            self._folder.weights,
            run=config.name,
            incarnation=incarnation,
            tokenizer_hash=tokenizer_hash(self._tokenizer),
            keep=config.learner.weight_versions,
        )
        self._open.callback(publisher.close)
        publisher.serve(self._options)
        journal = Journal(self._folder, state["journal"] if state else None)
        self._open.callback(journal.close)
        self._loop = LearnerLoop(
            ppo=ppo,
            section=config.learner,
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
        """Writes the trained policy, its moving average when there is one, to RunFolder.policy."""
        policy = self._trainer.policy
        if average := self._trainer.average_weights():
            with torch.no_grad():
                for name, parameter in policy.named_parameters():
                    parameter.copy_(average[name])
        save_model(policy, self._tokenizer, self._folder.policy)

    def close(self) -> None:
        """Gives back the queue, the weights server and the lock."""
        self._open.close()

    def _open_queue(self, incarnation: str) -> RedisLearnerQueue:
        """Reaches Redis and takes the run's name there; while that takes time, the status says why."""
        section = self._config.queue
        queue = RedisLearnerQueue(
            self._redis_url(),
            section.outage_seconds,
            password=section.password(),
            tls=self._options.tls,
            waiting=self._waits_for_queue,
        )
        self._open.callback(queue.close)
        first = (self._folder.root / "incarnations.txt").read_text(encoding="utf-8").split()[0]
        queue.open(self._config.name, incarnation, owner=first, where=f"{socket.gethostname()}:{self._folder.root}")
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
        url = self._options.endpoints.redis or self._config.queue.url
        if url is None:
            raise ConfigError("queue.url", "the learner needs a Redis; give --redis or queue.url")
        return url

    def _prompts(self) -> list[Prompt]:
        prompts = read_prompts(DataFiles.of(self._folder).ppo_prompts)
        encoded = encode_prompts(self._tokenizer, [prompt.text for prompt in prompts])
        return [Prompt(prompt.id, prompt.text, ids) for prompt, ids in zip(prompts, encoded, strict=True)]

    def _digests(self, policy: Path) -> dict[str, str]:
        """What the run depends on: each option by its dotted name, data, tokenizer and models."""
        options = deciding_options(self._config.model_dump(mode="json"), may_change=("evaluation",))
        digests = {f"config {key}": json.dumps(value) for key, value in options.items()}
        digests["data"] = folder_digest(self._folder.data)
        digests["tokenizer"] = tokenizer_hash(self._tokenizer)
        digests["start and reference model"] = folder_digest(policy)
        digests["reward model"] = folder_digest(self._folder.reward_model)
        for source in self._config.reward_sources:
            if source.function is not None:
                digests[f"reward function {source.name}"] = source_digest(source.function)
            for path in source.paths:
                digests[f"reward source {source.name}, model {path}"] = folder_digest(Path(path))
        return digests

    def _saved(self, checkpoints: Checkpoints, digests: dict[str, str]) -> dict[str, Any] | None:
        there = checkpoints.latest()
        if there is not None and not self._options.resume:
            raise FailedPrecondition(
                f"{there.parent} holds checkpoints, the newest {there.name}: --resume goes on from it; "
                "to start over, give the run another name, or delete them"
            )
        found = checkpoints.load_newest()
        if found is None:
            return None
        newest, state = found
        refuse_changes(state["digests"], digests)
        log.info("resuming from %s", newest)
        return state

    def _begin_incarnation(self) -> str:
        """Draws this start's random id and makes it durable before anything carries it."""
        incarnation = secrets.token_hex(4)
        path = self._folder.root / "incarnations.txt"
        with path.open("a", encoding="utf-8") as file:
            file.write(incarnation + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)
        return incarnation

    def _make_trainer(self, path: str, state: dict[str, Any] | None) -> Trainer:
        if state:
            offset = float(state["trainer"]["offset"])
        else:
            ends, tls = self._options.endpoints, self._options.tls
            offset = calibration_offset(self._config.ppo, self._folder, self._prompts(), ends, tls)
        orders = self._orders
        orders.give(Start(offset, f"step-{state['step']:06d}" if state else None))
        return make_trainer(self._config, self._folder, self._tokenizer, path, offset, orders=orders)


@contextmanager
def _sole_learner(folder: RunFolder) -> Iterator[None]:
    """Holds the run's lock, which the system releases however this process ends.

    Raises:
        FailedPrecondition: another process holds it.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with (folder.root / "learner.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"another learner drives the run in {folder.root}; stop it first") from None
        yield
