"""One learner over several processes, as torchrun starts them.

Rank 0 leads: it alone has the queue, the servers, the run's files and the loop. The others follow: they hold the same
models, wait for each step's rollouts, and compute their share of its sequences (ranks.py).

Consumes   torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK …), and what rank 0 sends.
Produces   gradients, summed over the ranks.
Waits for  rank 0, as long as it takes: a run may be paused.
Unblocked  by a step, or by the end that rank 0 announces. A rank that dies ends all: torchrun starts them again, and
           rank 0 resumes from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lodestar.config import ServeOptions
from lodestar.errors import NonFinite
from lodestar.model.loading import load_tokenizer
from lodestar.records import Rollout
from lodestar_services.learner.assembly import make_trainer, set_threads
from lodestar_services.learner.checkpoint import load_checkpoint
from lodestar_services.learner.trainer import Trainer

log = logging.getLogger(__name__)

PATIENCE = timedelta(days=30)
"""How long a follower waits for rank 0's next word."""


@dataclass(frozen=True, slots=True)
class Start:
    """What followers must know to begin as rank 0 does."""

    offset: float
    checkpoint: Path | None


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """This process's rank. Joins torchrun's group while the context lasts; without torchrun there is rank 0 alone."""
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":  # schedulers set WORLD_SIZE too
        yield 0
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


class Word:
    """What rank 0 says to all: first a Start, then each step's rollouts, and None at the end."""

    def __init__(self) -> None:
        """Every rank makes one, at the same time; without other ranks nothing is sent."""
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None

    def send(self, word: Any) -> None:
        """Rank 0 speaks."""
        if self._group is not None:
            dist.broadcast_object_list([word], src=0, group=self._group)

    def receive(self) -> Any:
        """Another rank listens."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._group)
        return heard[0]


class LeadingTrainer(Trainer):
    """Rank 0's trainer: calls the followers to every step."""

    word: Word

    def step(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """See Trainer.step."""
        self.word.send(list(rollouts))
        return super().step(rollouts)


def follow(options: ServeOptions) -> None:
    """Takes part in every step until rank 0 announces the end.

    SIGTERM is rank 0's to obey: it reaches all ranks, and a follower that left would break the step in progress.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    set_threads(options.config)
    word = Word()
    start = word.receive()
    if start is None:
        return
    trainer = make_trainer(options, load_tokenizer(options.start_model), start.offset)
    if start.checkpoint is not None:
        trainer.load_state_dict(load_checkpoint(start.checkpoint)["trainer"])
    log.info("rank %d of %d takes part", dist.get_rank(), dist.get_world_size())
    while (rollouts := word.receive()) is not None:
        with contextlib.suppress(NonFinite):  # every rank meets it and undoes the step; rank 0 says so
            trainer.step(rollouts)
