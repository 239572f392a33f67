"""Blocks of the KV cache: who holds them, and which hold a prefix that may be shared."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise


def block_hashes(tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """A hash per full block, each over its tokens and the hash before it: equal hashes mean equal prefixes."""
    hashes: list[bytes] = []
    previous = b""
    edges = range(0, len(tokens) + 1, block_tokens)
    for start, end in pairwise(edges):
        block = array("q", tokens[start:end]).tobytes()
        previous = hashlib.blake2b(previous + block, digest_size=16).digest()
        hashes.append(previous)
    return hashes


class BlockManager:
    """Counts references to ``total`` blocks and remembers the hashes of those with a finished prefix.

    A block is free, held by sequences (references ≥ 1), or idle: nobody holds it, but its prefix may be wanted again.
    Idle blocks are evicted, least recently used first, when free ones run out. A prefix loses its end before its
    beginning: a block is of no use without those before it.
    """

    def __init__(self, total: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.total = total
        self._on_evict = on_evict
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that :meth:`take` can give."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.total - self.available

    @property
    def idle(self) -> int:
        """Blocks kept for their prefix alone."""
        return len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """``count`` blocks with one reference each, or None when there are not as many."""
        if count > self.available:
            return None
        while len(self._free) < count:
            self._evict()
        blocks = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """One more reference."""
        self._references[block] += 1
        self._idle.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less; the last one makes the block idle when it has a hash, else free."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def publish(self, block: int, prefix: bytes) -> None:
        """The block now holds the keys and values of this prefix; the first to say so is remembered."""
        if prefix not in self._block_of:
            self._block_of[prefix] = block
            self._hash_of[block] = prefix

    def find(self, prefixes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known run of prefixes, marked as used just now."""
        blocks = []
        for prefix in prefixes:
            block = self._block_of.get(prefix)
            if block is None:
                break
            blocks.append(block)
        for block in reversed(blocks):
            if block in self._idle:
                self._idle.move_to_end(block)
        return blocks

    def forget(self) -> None:
        """Drop every hash: the weights changed, and what was computed with the old ones must not be shared."""
        while self._idle:
            self._evict()
        self._hash_of.clear()
        self._block_of.clear()

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        self._free.append(block)
        if self._on_evict is not None:
            self._on_evict(block)
