"""How sequences are put into batches of a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batches_of(
    items: Iterable[Item], tokens: int, length: Callable[[Item], int], *, padded: bool = False
) -> Iterator[list[Item]]:
    """Items in their order, gathered until the next would exceed ``tokens``; a longer one stands alone.

    Args:
        length: tokens of an item.
        padded: each takes as many tokens as the longest of its batch.
    """
    batch: list[Item] = []
    total = longest = 0
    for item in items:
        total, longest = total + length(item), max(longest, length(item))
        if batch and ((len(batch) + 1) * longest if padded else total) > tokens:
            yield batch
            batch, total, longest = [], length(item), length(item)
        batch.append(item)
    if batch:
        yield batch
