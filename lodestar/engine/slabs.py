"""The KV cache of a CPU: one contiguous slab per sequence, so that no step copies what earlier steps wrote.

Decode attention is memory-bound: it reads every key and value once per step. Keys of sequences in neighbouring slabs
whose lengths are close are multiplied by one call over a view of their slabs; the rest one call each. Prefixes that
outlive their sequence are copied into blocks and back, which costs a fraction of computing them.
"""

from __future__ import annotations

import bisect
import math
import mmap
from collections.abc import Sequence as Tokens
from itertools import count

from torch import Tensor

from lodestar.engine.blocks import BlockManager
from lodestar.engine.cache import KVCache
from lodestar.engine.memory import LazyTensor
from lodestar.engine.sequence import Plan, Sequence
from lodestar.engine.slab_attention import DETERMINISTIC_CHUNK, SharedPrefix, SlabAttention, group_cost, group_rows
from lodestar.model.kept import CacheShape

REGROUP_STEPS = 32
"""Lengths grow together, so groups stay good for a while."""


class SlabCache(KVCache):
    """Slabs of ``capacity`` tokens for ``slots`` sequences; memory follows what is written (see LazyTensor)."""

    def __init__(
        self,
        shape: CacheShape,
        *,
        slots: int,
        capacity: int,
        total_tokens: int,
        block_tokens: int,
        deterministic: bool = False,
    ) -> None:
        self.shape = shape
        self.block_tokens = block_tokens
        self.deterministic = deterministic
        self.blocks = BlockManager(total_tokens // block_tokens, on_evict=self._discard_block)
        self.capacity = self.blocks_for(min(capacity, total_tokens)) * block_tokens
        if deterministic:
            self._chunk_blocks = DETERMINISTIC_CHUNK // math.gcd(DETERMINISTIC_CHUNK, block_tokens)
            self.capacity = -(-self.capacity // DETERMINISTIC_CHUNK) * DETERMINISTIC_CHUNK
        kv = (shape.layers, 2)
        self._slabs = LazyTensor((*kv, slots, shape.kv_heads, self.capacity, shape.head_dim), shape.dtype)
        self._kept = LazyTensor((self.blocks.total, *kv, shape.kv_heads, block_tokens, shape.head_dim), shape.dtype)
        self.keys = [self._slabs.tensor[layer, 0] for layer in range(shape.layers)]
        self.values = [self._slabs.tensor[layer, 1] for layer in range(shape.layers)]
        self._free_slots = list(range(slots))
        self._slot: dict[int, int] = {}
        self._held: dict[int, list[int]] = {}
        self._family: dict[int, tuple[int, int]] = {}
        """Of forked sequences and those they were forked from: the family's number, and how many tokens it shares."""
        self._families = count()
        self._touched = [0] * slots
        """Tokens up to which a slab has taken memory."""
        self._arranged: tuple[list[int], int] = ([], 0)
        """Slabs decoded last, and for how many steps."""
        self._groups: list[tuple[int, int]] = []

    def slot(self, sequence: Sequence) -> int:
        """Where an open sequence's slab is."""
        return self._slot[sequence.id]

    def has_room(self, tokens: int, spare_blocks: int = 0) -> bool:
        return bool(self._free_slots) and self.blocks_for(tokens) + spare_blocks <= self.blocks.available

    def open(self, sequence: Sequence, reserve: int, prefixes: Tokens[bytes]) -> int:
        self.blocks.find(prefixes)  # used just now, so that taking blocks evicts others first
        held = self.blocks.take(self.blocks_for(reserve))
        if held is None:
            raise RuntimeError("open was called without room")
        self._held[sequence.id] = held
        slot = self._slot[sequence.id] = self._choose_slot()
        found = self.blocks.find(prefixes)
        if self.deterministic:
            found = found[: len(found) // self._chunk_blocks * self._chunk_blocks]
        if not found:
            return 0
        self._in_blocks(slot, 0, len(found)).copy_(self._kept.tensor[found])
        self._note_written(slot, len(found) * self.block_tokens)
        return len(found) * self.block_tokens

    def fork(self, parent: Sequence, child: Sequence, tokens: int) -> None:
        source, target = self._slot[parent.id], self._slot[child.id]
        slabs = self._slabs.tensor
        slabs[:, :, target, :, :tokens] = slabs[:, :, source, :, :tokens]
        self._note_written(target, tokens)
        family = self._family.get(parent.id)
        if family is None or family[1] != tokens:
            family = self._family[parent.id] = next(self._families), tokens
        self._family[child.id] = family

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        held = self._held[sequence.id]
        missing = self.blocks_for(tokens) - len(held)
        if missing > 0:
            more = self.blocks.take(missing)
            if more is None:
                return False
            held.extend(more)
        return True

    def remember(self, sequence: Sequence, prefixes: Tokens[bytes]) -> None:
        known = len(self.blocks.find(prefixes))
        taken = self.blocks.take(min(len(prefixes) - known, self.blocks.available))
        if not taken:
            return
        self._kept.tensor[taken] = self._in_blocks(self._slot[sequence.id], known, known + len(taken))
        for block, prefix in zip(taken, prefixes[known:], strict=False):
            self.blocks.publish(block, prefix)
        self.blocks.release(taken)

    def close(self, sequence: Sequence) -> None:
        slot = self._slot.pop(sequence.id)
        self._family.pop(sequence.id, None)
        self.blocks.release(self._held.pop(sequence.id))
        bisect.insort(self._free_slots, slot)
        self._trim()

    def order(self, sequences: list[Sequence]) -> list[Sequence]:
        """By slab; now and then slabs are moved first, so that sequences of one length are neighbours."""
        ordered = sorted(sequences, key=self.slot)
        slots = [self._slot[sequence.id] for sequence in ordered]
        known, age = self._arranged
        if self.deterministic or (slots == known and age < REGROUP_STEPS):
            self._arranged = slots, age + 1
            return ordered
        lengths = [len(sequence.tokens) for sequence in ordered]
        token_bytes = self.shape.token_bytes // self.shape.layers
        self._groups = group_rows(slots, lengths, token_bytes)
        by_length = sorted(ordered, key=lambda sequence: len(sequence.tokens))
        targets = sorted([*slots, *self._free_slots[: len(slots)]])[: len(slots)]
        ideal_lengths = sorted(lengths)
        ideal = group_rows(targets, ideal_lengths, token_bytes)
        gain = group_cost(self._groups, slots, lengths, token_bytes)
        gain -= group_cost(ideal, targets, ideal_lengths, token_bytes)
        moves = {s.id: target for s, target in zip(by_length, targets, strict=True) if self._slot[s.id] != target}
        moved_tokens = sum(len(sequence.tokens) for sequence in ordered if sequence.id in moves)
        if gain * REGROUP_STEPS > 2 * moved_tokens * token_bytes:  # a move reads and writes
            self._move({sequence: moves[sequence.id] for sequence in ordered if sequence.id in moves})
            ordered, slots, self._groups = by_length, targets, ideal
        self._arranged = slots, 0
        return ordered

    def context(self, plan: Plan) -> SlabAttention:
        slots = [self._slot[sequence.id] for sequence in plan.decode]
        lengths = [len(sequence.tokens) for sequence in plan.decode]
        for slot, length in zip(slots, lengths, strict=True):
            self._note_written(slot, length)
        for chunk in plan.chunks:
            self._note_written(self._slot[chunk.sequence.id], chunk.end)
        chunks = []
        for chunk in plan.chunks:
            step = DETERMINISTIC_CHUNK if self.deterministic else chunk.end - chunk.start
            for start in range(chunk.start, chunk.end, step):
                chunks.append((self._slot[chunk.sequence.id], start, min(start + step, chunk.end)))
        alone = self.deterministic or len(slots) == 1
        if alone:
            return SlabAttention(self, slots, lengths, [], chunks)
        return SlabAttention(self, slots, lengths, self._groups, chunks, self._shared(plan.decode))

    def _shared(self, rows: list[Sequence]) -> list[SharedPrefix]:
        """Rows of one family, where it pays to read its tokens once for all."""
        families: dict[tuple[int, int], list[int]] = {}
        for row, sequence in enumerate(rows):
            if (family := self._family.get(sequence.id)) is not None:
                families.setdefault(family, []).append(row)
        prefixes = [SharedPrefix(rows_, self.slot(rows[rows_[0]]), family[1]) for family, rows_ in families.items()]
        return [prefix for prefix in prefixes if prefix.worth(self.shape.token_bytes // self.shape.layers)]

    def _move(self, targets: dict[Sequence, int]) -> None:
        """Put sequences into other slabs, free ones or each other's."""
        wanted_by = {target: sequence for sequence, target in targets.items()}
        left = {self._slot[sequence.id] for sequence in targets}
        to_free = [sequence for sequence, target in targets.items() if target not in left]
        pending = set(targets)
        for start in [*to_free, *targets]:
            if start not in pending:
                continue
            # Chains that end in a free slab first; what is left are cycles, each opened by setting one slab aside.
            cycle = start not in to_free
            aside = self._slab(start).clone() if cycle else None
            mover = wanted_by.get(self._slot[start.id]) if cycle else start
            while mover in pending:
                vacated = self._slot[mover.id]
                self._place(mover, targets[mover], aside if aside is not None and mover is start else self._slab(mover))
                pending.remove(mover)
                mover = wanted_by.get(vacated)
        self._free_slots = sorted((set(self._free_slots) | left) - set(targets.values()))

    def _slab(self, sequence: Sequence) -> Tensor:
        """Keys and values computed so far, [layers, 2, M, tokens, D]."""
        return self._slabs.tensor[:, :, self._slot[sequence.id], :, : sequence.computed]

    def _place(self, sequence: Sequence, slot: int, slab: Tensor) -> None:
        self._slabs.tensor[:, :, slot, :, : sequence.computed] = slab
        self._slot[sequence.id] = slot
        self._note_written(slot, sequence.computed)

    def _choose_slot(self) -> int:
        return self._free_slots.pop(0)

    def _in_blocks(self, slot: int, first: int, end: int) -> Tensor:
        """A slab's tokens as blocks ``first … end − 1``: a view [blocks, layers, 2, M, block, D]."""
        slab = self._slabs.tensor[:, :, slot, :, first * self.block_tokens : end * self.block_tokens]
        blocks = slab.view(*slab.shape[:3], end - first, self.block_tokens, slab.shape[4])
        return blocks.permute(3, 0, 1, 2, 4, 5)

    def _note_written(self, slot: int, end: int) -> None:
        self._touched[slot] = max(self._touched[slot], end)

    def _trim(self) -> None:
        """Give pages of free slabs back once more tokens are in memory than the cache may hold."""
        excess = sum(self._touched) + self.blocks.idle * self.block_tokens - self.blocks.total * self.block_tokens
        for slot in reversed(self._free_slots):
            if excess <= 0:
                return
            if self._touched[slot]:
                excess -= self._touched[slot]
                self._touched[slot] = 0
                for layer in range(self.shape.layers):
                    for kv in range(2):
                        self._slabs.discard((layer, kv, slot))

    def _discard_block(self, block: int) -> None:
        if self._kept.tensor[block].numel() * self.shape.dtype.itemsize >= mmap.PAGESIZE:
            self._kept.discard((block,))
