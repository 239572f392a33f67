"""The KV cache of a GPU: pages of ``block_tokens`` tokens and a table per sequence, read by the paged kernel.

Prefixes are shared by reference. Elsewhere the same code runs on the kernel's plain reference, which is how it is
tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import torch
from lodestar_kernels.paged_attention import PagedLayout, paged_attention, write_kv
from torch import Tensor

from lodestar.engine.blocks import BlockManager
from lodestar.engine.cache import CacheShape, KVCache
from lodestar.engine.sequence import Plan, Sequence


class PagedCache(KVCache):
    """``total_tokens`` of pages, allocated at once on ``device``."""

    def __init__(
        self, shape: CacheShape, *, capacity: int, total_tokens: int, block_tokens: int, device: torch.device
    ) -> None:
        self.block_tokens = block_tokens
        self.blocks = BlockManager(total_tokens // block_tokens)
        self.capacity = self.blocks_for(min(capacity, total_tokens)) * block_tokens
        self._device = device
        pages = (self.blocks.total, block_tokens, shape.kv_heads, shape.head_dim)
        self.keys = [torch.zeros(pages, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(pages, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self._tables: dict[int, list[int]] = {}

    def has_room(self, tokens: int, spare_blocks: int = 0) -> bool:
        return self.blocks_for(tokens) + spare_blocks <= self.blocks.available

    def open(self, sequence: Sequence, reserve: int, prefixes: Tokens[bytes]) -> int:
        found = self.blocks.find(prefixes)
        for block in found:
            self.blocks.share(block)
        more = self.blocks.take(max(0, self.blocks_for(reserve) - len(found)))
        if more is None:
            raise RuntimeError("open was called without room")
        self._tables[sequence.id] = found + more
        return len(found) * self.block_tokens

    def fork(self, parent: Sequence, child: Sequence, tokens: int) -> None:
        source, target = self._tables[parent.id], self._tables[child.id]
        whole = tokens // self.block_tokens
        for block in source[:whole]:
            self.blocks.share(block)
        self.blocks.release(target[:whole])
        target[:whole] = source[:whole]
        if tokens % self.block_tokens:
            for pages in (*self.keys, *self.values):
                pages[target[whole]] = pages[source[whole]]

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        table = self._tables[sequence.id]
        more = self.blocks.take(max(0, self.blocks_for(tokens) - len(table)))
        if more is None:
            return False
        table.extend(more)
        return True

    def remember(self, sequence: Sequence, prefixes: Tokens[bytes]) -> None:
        for block, prefix in zip(self._tables[sequence.id], prefixes, strict=False):
            self.blocks.publish(block, prefix)

    def close(self, sequence: Sequence, *, poisoned: bool = False) -> None:
        table = self._tables.pop(sequence.id)
        self.blocks.release(table)
        if poisoned:
            for pages in (*self.keys, *self.values):
                pages[table] = pages[table].nan_to_num_(0, 0, 0)

    def order(self, sequences: list[Sequence]) -> list[Sequence]:
        return sequences

    def context(self, plan: Plan) -> PagedStep:
        parts = [(sequence, len(sequence.tokens) - 1, len(sequence.tokens)) for sequence in plan.decode]
        parts += [(chunk.sequence, chunk.start, chunk.end) for chunk in plan.chunks]
        tables = [self._tables[sequence.id] for sequence, _, _ in parts]
        width = max(map(len, tables))
        tables_BP = torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32)
        slots = [
            table[position // self.block_tokens] * self.block_tokens + position % self.block_tokens
            for table, (_, start, end) in zip(tables, parts, strict=True)
            for position in range(start, end)
        ]
        layout = PagedLayout.from_lengths(
            [end - start for _, start, end in parts], [end for *_, end in parts], tables_BP.to(self._device)
        )
        return PagedStep(self, layout, torch.tensor(slots, dtype=torch.int64, device=self._device))


class PagedStep:
    """The attention context of one step; a sequence's last chunk and its decode row are two entries of the layout."""

    def __init__(self, cache: PagedCache, layout: PagedLayout, slots_T: Tensor) -> None:
        self._cache = cache
        self._layout = layout
        self._slots_T = slots_T

    def attend(
        self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Write the rows' keys and values, then attend; see lodestar.model.attention.AttentionContext."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        write_kv(k_TMD, v_TMD, keys, values, self._slots_T)
        return paged_attention(q_TND, keys, values, self._layout, scale=scale, window=window)
