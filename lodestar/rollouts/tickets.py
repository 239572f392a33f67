"""Which prompt and which seed each ticket carries: pure functions of the run's seed, the step and the index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lodestar.errors import DataError
from lodestar.records import Prompt, Ticket

_EPOCH, _RESERVE = 0, 1
"""Domains of the random permutations."""


class Sampling(Protocol):
    """How prompts are sampled: PPO's options, or those of a stage that samples once."""

    @property
    def steps(self) -> int:
        """How often rollouts are collected."""

    @property
    def tickets(self) -> int:
        """Tickets per step."""

    @property
    def samples_per_prompt(self) -> int:
        """n of each ticket."""

    @property
    def max_tokens(self) -> int:
        """Response tokens at most."""

    @property
    def temperature(self) -> float:
        """τ."""

    @property
    def max_staleness(self) -> int:
        """Steps that a rollout's weights may lag behind."""


class TicketSchedule:
    """Makes tickets: ``TicketSchedule(prompts, ppo, run="demo", seed=0).ticket("9f31c2aa", step=3, index=7)``.

    Prompts go by in epochs: every prompt once in an order shuffled by (seed, epoch), then the next epoch. No state:
    a resumed run asks for step k and gets what the first one got.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        run: str,
        seed: int,
        total: int | None = None,
        fixed: bool = False,
    ) -> None:
        """
        Args:
            total: tickets of all steps together, where the last step has fewer than the others.
            fixed: the policy stays what it is: no rollout is ever too old.

        Raises:
            DataError: there are no prompts.
        """
        if not prompts:
            raise DataError("prompts", "no prompts to train on; see data.* and the counts in the data stage's log")
        self._prompts = prompts
        self._sampling = sampling
        self._run = run
        self._fixed = fixed
        self._total = sampling.steps * sampling.tickets if total is None else total
        self._seed = seed
        self._permutation = lru_cache(maxsize=4)(self._shuffle)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self._sampling.steps

    @property
    def tickets(self) -> int:
        """Tickets per step."""
        return self._sampling.tickets

    def places(self, step: int) -> range:
        """Indexes of a step's tickets."""
        return range(min(self.tickets, self._total - step * self.tickets))

    @property
    def max_staleness(self) -> int:
        """Steps a rollout's policy may lag behind."""
        return self._sampling.max_staleness

    def ticket(self, incarnation: str, step: int, index: int) -> Ticket:
        """The first ticket of a place in a step's batch."""
        return Ticket(
            run=self._run,
            incarnation=incarnation,
            step=step,
            index=index,
            prompt=self.prompt(step, index),
            n=self._sampling.samples_per_prompt,
            seed=self.sampling_seed(step, index),
            min_step=0 if self._fixed else max(0, step - self._sampling.max_staleness),
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
        )

    def prompt(self, step: int, index: int) -> Prompt:
        """The prompt of a place in a step's batch."""
        return self._prompts[self._position(step, index)]

    def reserve(self, step: int, number: int) -> Prompt:
        """The step's reserve prompts, for tickets that failed: none of the step's own while there are others."""
        own = {self._position(step, index) for index in self.places(step)}
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
