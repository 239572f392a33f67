"""The order in which a stage sees its rows: every batch of every epoch, known before the first step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lodestar.packing import batches_of


def plan(lengths: Sequence[int], batch_tokens: int, epochs: float, *, seed: str) -> list[list[int]]:
    """The batches of all epochs, each in a random order of its own; a fraction of an epoch is its first batches."""
    batches: list[list[int]] = []
    epoch = 0
    while epochs > 0:
        order = list(range(len(lengths)))
        random.Random(f"{seed}/epoch {epoch}").shuffle(order)
        whole = [*batches_of(order, batch_tokens, lengths.__getitem__)]
        batches += whole[: max(1, round(min(1.0, epochs) * len(whole)))]
        epochs -= 1
        epoch += 1
    return batches
