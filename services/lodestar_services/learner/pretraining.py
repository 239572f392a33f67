"""Pretraining text for PPO-ptx: a shuffled stream of documents with a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lodestar.errors import ConfigError
from lodestar.model.packed import PackedBatch
from lodestar.packing import batches_of


class PretrainingText:
    """Draws documents in an order that is a pure function of (seed, pass), wherever the cursor stands."""

    def __init__(self, documents: Sequence[Sequence[int]], seed: int, batch_tokens: int) -> None:
        """``documents``: token ids of each, at least two.

        Raises:
            ConfigError: no document to draw.
        """
        self._documents = [list(document) for document in documents if len(document) > 1]
        if not self._documents:
            raise ConfigError("ppo.ptx.coefficient", "is above 0, but there is no pretraining text")
        self._seed = seed
        self._batch_tokens = batch_tokens
        self._order: tuple[int, list[int]] | None = None
        self.cursor = 0
        """Documents drawn so far."""

    def draw(self) -> list[list[int]]:
        """The documents of one optimizer step, at least one, of about ``batch_tokens`` tokens."""
        drawn: list[list[int]] = []
        tokens = 0
        while not drawn or tokens < self._batch_tokens:
            passes, place = divmod(self.cursor, len(self._documents))
            document = self._documents[self._shuffled(passes)[place]]
            if drawn and tokens + len(document) > self._batch_tokens:
                break
            drawn.append(document)
            tokens += len(document)
            self.cursor += 1
        return drawn

    def pack(self, documents: Sequence[list[int]], tokens: int, device: torch.device) -> Iterator[PackedBatch]:
        """Documents as packed batches of at most ``tokens`` tokens; every token but the first is predicted."""
        for batch in batches_of(documents, tokens, len):
            yield PackedBatch.pack(batch, [1] * len(batch), device=device)

    def _shuffled(self, passes: int) -> list[int]:
        if self._order is None or self._order[0] != passes:
            generator = torch.Generator().manual_seed(self._seed + passes)
            self._order = passes, torch.randperm(len(self._documents), generator=generator).tolist()
        return self._order[1]
