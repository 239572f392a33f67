"""Which prompt and which seed each ticket carries: pure functions of the run's seed, the step and the index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lodestar.config import PpoConfig
from lodestar.errors import DataError
from lodestar.records import Prompt, Ticket

_EPOCH, _RESERVE = 0, 1
"""Domains of the random permutations."""


class TicketSchedule:
    """Makes tickets: ``TicketSchedule(prompts, config.ppo, run="demo", seed=0).ticket("9f31c2aa", step=3, index=7)``.

    Prompts go by in epochs: every prompt once in an order shuffled by (seed, epoch), then the next epoch. No state:
    a resumed run asks for step k and gets what the first one got.
    """

    def __init__(self, prompts: Sequence[Prompt], ppo: PpoConfig, *, run: str, seed: int) -> None:
        """
        Raises:
            DataError: there are no prompts.
        """
        if not prompts:
            raise DataError("prompts", "no prompts to train on; see data.* and the counts in the data stage's log")
        self._prompts = prompts
        self._ppo = ppo
        self._run = run
        self._seed = seed
        self._permutation = lru_cache(maxsize=4)(self._shuffle)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self._ppo.steps

    @property
    def tickets(self) -> int:
        """Tickets per step."""
        return self._ppo.tickets

    @property
    def max_staleness(self) -> int:
        """Steps a rollout's policy may lag behind."""
        return self._ppo.max_staleness

    def ticket(self, incarnation: str, step: int, index: int) -> Ticket:
        """The first ticket of a place in a step's batch."""
        return Ticket(
            run=self._run,
            incarnation=incarnation,
            step=step,
            index=index,
            prompt=self.prompt(step, index),
            n=self._ppo.samples_per_prompt,
            seed=self.sampling_seed(step, index),
            min_step=max(0, step - self._ppo.max_staleness),
            max_tokens=self._ppo.max_tokens,
            temperature=self._ppo.temperature,
        )

    def prompt(self, step: int, index: int) -> Prompt:
        """The prompt of a place in a step's batch."""
        return self._prompts[self._position(step, index)]

    def reserve(self, step: int, number: int) -> Prompt:
        """The step's reserve prompts, for tickets that failed: none of the step's own while there are others."""
        own = {self._position(step, index) for index in range(self.tickets)}
        order = self._permutation(_RESERVE, step)
        others = [int(position) for position in order if int(position) not in own] or [int(p) for p in order]
        return self._prompts[others[number % len(others)]]

    def sampling_seed(self, step: int, index: int) -> int:
        """In [0, 2⁶³); the engine adds the sample's index and the token's position."""
        digest = hashlib.blake2b(f"{self._seed}/{step}/{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def _position(self, step: int, index: int) -> int:
        epoch, offset = divmod(step * self.tickets + index, len(self._prompts))
        return int(self._permutation(_EPOCH, epoch)[offset])

    def _shuffle(self, domain: int, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, domain, number)).permutation(len(self._prompts))
