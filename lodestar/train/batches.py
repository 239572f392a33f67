"""The order in which a stage sees its rows: every batch of every epoch, known before the first step."""

from __future__ import annotations

import random
from collections.abc import Sequence


def batches_of(lengths: Sequence[int], batch_tokens: int, order: Sequence[int]) -> list[list[int]]:
    """Rows in the given order, gathered until the next would exceed ``batch_tokens``; a longer row stands alone."""
    batches: list[list[int]] = []
    tokens = batch_tokens
    for row in order:
        if tokens + lengths[row] > batch_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(row)
        tokens += lengths[row]
    return batches


def plan(lengths: Sequence[int], batch_tokens: int, epochs: float, *, seed: str) -> list[list[int]]:
    """The batches of all epochs, each in a random order of its own; a fraction of an epoch is its first batches."""
    batches: list[list[int]] = []
    epoch = 0
    while epochs > 0:
        order = list(range(len(lengths)))
        random.Random(f"{seed}/epoch {epoch}").shuffle(order)
        whole = batches_of(lengths, batch_tokens, order)
        batches += whole[: max(1, round(min(1.0, epochs) * len(whole)))]
        epochs -= 1
        epoch += 1
    return batches
