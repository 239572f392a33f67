"""The ranks of a learner after the first: they hold the same policy and critic and compute their share of every step.

    torchrun --nproc-per-node=8 --no-python lodestar work FILE      # the stage that a conductor's file says

The first rank is a learner as there is always one: it owns the queue, the journal, the checkpoints and the gRPC
servers, and tells the others what they need: how to start, each step's rollouts, and the end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lodestar.config import LearnerTask
from lodestar.cores import compute_threads
from lodestar.model.loading import load_tokenizer
from lodestar.records import Rollout
from lodestar.rpc.batching import ComputeThread
from lodestar.rpc.server import run
from lodestar.rpc.spec import ServerSpec
from lodestar_services.learner.checkpoint import Checkpoints, load_checkpoint
from lodestar_services.learner.models import Start, make_trainer
from lodestar_services.learner.ranks import Orders, join
from lodestar_services.learner.trainer import Trainer, make_deterministic


def rank_here() -> int:
    """This process's rank as torchrun says; 0 without it."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def follow(task: LearnerTask) -> int:
    """Serves the first rank until it ends the run; the exit code.

    One process per machine answers probes and scrapers; SIGTERM is heard by the first rank, which ends the step.
    """
    follower, compute = Follower(task), ComputeThread("learner", waits=True)

    async def work(stopping: asyncio.Event) -> None:
        await compute.run(follower.run)

    ours: dict[str, Any] = {"replica": rank_here(), "port": 0, "caller_port": None}
    if os.environ.get("LOCAL_RANK") != "0":
        ours |= {"host": "127.0.0.1", "health_port": None, "metrics_port": 0}
    told = task.model_copy(update={"listening": task.listening.model_copy(update=ours)})
    build = partial(compute.run, follower.build)
    return run(ServerSpec.of(told, task.section, [], warm=build, work=work))


class Follower:
    """``follower.build(); follower.run()`` on the training thread."""

    def __init__(self, task: LearnerTask) -> None:
        self._task = task
        self._orders: Orders
        self._trainer: Trainer

    def build(self) -> None:
        """Loads what the first rank loads, from the same volume."""
        task = self._task
        join()
        if task.deterministic:
            make_deterministic()
        else:
            compute_threads(task.section.threads)
        self._orders = Orders()
        start: Start = self._orders.take()
        self._trainer = make_trainer(task, load_tokenizer(task.tokenizer or task.policy), start.offset)
        if start.checkpoint is not None:
            whole = Checkpoints(task.state / "checkpoints", task.section.keep_checkpoints)
            self._trainer.load_state_dict(load_checkpoint(_named(whole.all(), start.checkpoint))["trainer"])

    def run(self) -> None:
        """Steps until the first rank ends it."""
        while (rollouts := self._next()) is not None:
            self._trainer.step(rollouts)

    def _next(self) -> Sequence[Rollout] | None:
        rollouts: Sequence[Rollout] | None = self._orders.take()
        return rollouts


def _named(checkpoints: Sequence[Path], name: str) -> Path:
    return next(path for path in checkpoints if path.name == name)
