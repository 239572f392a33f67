"""The KV cache of a GPU: pages of ``block_tokens`` tokens and a table per sequence, read by the paged kernel.

Prefixes are shared by reference. Elsewhere the same code runs on the kernel's plain reference, which is how it is
tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np
import torch
from lodestar_kernels.attention.scored import scored_attention
from lodestar_kernels.paged_attention import PagedLayout, paged_attention, write_kv
from lodestar_kernels.paged_attention.reference import gather_context
from numpy.typing import NDArray
from torch import Tensor

from lodestar.engine.blocks import BlockManager
from lodestar.engine.cache import KVCache
from lodestar.engine.memory import to_device
from lodestar.engine.sequence import Plan, Sequence
from lodestar.model.attention import LayerRule, scores_plainly
from lodestar.model.kept import CacheShape


class PagedCache(KVCache):
    """``total_tokens`` of pages, allocated at once on ``device``, for at most ``sequences`` open sequences."""

    def __init__(
        self,
        shape: CacheShape,
        *,
        sequences: int,
        capacity: int,
        total_tokens: int,
        block_tokens: int,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self.block_tokens = block_tokens
        self.blocks = BlockManager(total_tokens // block_tokens)
        self.capacity = self.blocks_for(min(capacity, total_tokens)) * block_tokens
        self._device = device
        pages = (self.blocks.total, block_tokens, shape.kv_heads, shape.head_dim)
        self.keys = [torch.zeros(pages, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(pages, dtype=shape.dtype, device=device) for _ in range(shape.layers)]
        self._held: dict[int, list[int]] = {}
        self._row: dict[int, int] = {}
        self._free_rows = list(range(sequences))
        self._tables_RP = np.zeros((sequences, self.capacity // block_tokens), dtype=np.int32)
        """Blocks of every open sequence, in the row that it was given."""

    def has_room(self, tokens: int, spare_blocks: int = 0) -> bool:
        return bool(self._free_rows) and self.blocks_for(tokens) + spare_blocks <= self.blocks.available

    def open(self, sequence: Sequence, reserve: int, prefixes: Tokens[bytes]) -> int:
        found = self.blocks.find(prefixes)
        for block in found:
            self.blocks.share(block)
        more = self.blocks.take(max(0, self.blocks_for(reserve) - len(found)))
        if more is None:
            raise RuntimeError("open was called without room")
        self._row[sequence.id] = self._free_rows.pop()
        self._held[sequence.id] = []
        self._append(sequence, found + more)
        return len(found) * self.block_tokens

    def fork(self, parent: Sequence, child: Sequence, tokens: int) -> None:
        source, target = self._held[parent.id], self._held[child.id]
        whole = tokens // self.block_tokens
        for block in source[:whole]:
            self.blocks.share(block)
        self.blocks.release(target[:whole])
        target[:whole] = source[:whole]
        self._tables_RP[self._row[child.id], :whole] = source[:whole]
        if tokens % self.block_tokens:
            for pages in (*self.keys, *self.values):
                pages[target[whole]] = pages[source[whole]]

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        missing = self.blocks_for(tokens) - len(self._held[sequence.id])
        if missing > 0:
            more = self.blocks.take(missing)
            if more is None:
                return False
            self._append(sequence, more)
        return True

    def remember(self, sequence: Sequence, prefixes: Tokens[bytes]) -> None:
        for block, prefix in zip(self._held[sequence.id], prefixes, strict=False):
            self.blocks.publish(block, prefix)

    def close(self, sequence: Sequence) -> None:
        self.blocks.release(self._held.pop(sequence.id))
        self._free_rows.append(self._row.pop(sequence.id))

    def order(self, sequences: list[Sequence]) -> list[Sequence]:
        return sequences

    def tables(self, sequences: list[Sequence], width: int) -> NDArray[np.int32]:
        """The first ``width`` blocks of every sequence, int32 [B, width]; beyond its own a row says anything."""
        return self._tables_RP[[self._row[sequence.id] for sequence in sequences], :width]

    def context(self, plan: Plan) -> PagedStep:
        sequences = [*plan.decode, *(chunk.sequence for chunk in plan.chunks)]
        starts = [len(sequence.tokens) - 1 for sequence in plan.decode] + [chunk.start for chunk in plan.chunks]
        ends = [len(sequence.tokens) for sequence in plan.decode] + [chunk.end for chunk in plan.chunks]
        tables_BP = self.tables(sequences, self.blocks_for(max(ends)))
        new = np.subtract(ends, starts)
        # Position of every row: each sequence's count on from its start.
        positions_T = np.arange(new.sum()) + np.repeat(starts - np.cumsum(new) + new, new)
        blocks_T = tables_BP[np.repeat(np.arange(len(new)), new), positions_T // self.block_tokens]
        slots_T = blocks_T.astype(np.int64) * self.block_tokens + positions_T % self.block_tokens
        layout = PagedLayout.from_lengths(new.tolist(), ends, to_device(torch.from_numpy(tables_BP), self._device))
        return PagedStep(self, layout, to_device(torch.from_numpy(slots_T), self._device))

    def _append(self, sequence: Sequence, blocks: list[int]) -> None:
        held = self._held[sequence.id]
        self._tables_RP[self._row[sequence.id], len(held) : len(held) + len(blocks)] = blocks
        held.extend(blocks)


class PagedStep:
    """The attention context of one step; a sequence's last chunk and its decode row are two entries of the layout."""

    def __init__(self, cache: PagedCache, layout: PagedLayout, slots_T: Tensor) -> None:
        self._cache = cache
        self._layout = layout
        self._slots_T = slots_T

    def attend(self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rule: LayerRule) -> Tensor:
        """Write the rows' keys and values, then attend; see lodestar.model.attention.AttentionContext."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        write_kv(k_TMD, v_TMD, keys, values, self._slots_T)
        if scores_plainly(rule):
            return paged_attention(q_TND, keys, values, self._layout, scale=rule["scale"], window=rule["window"])
        return self._scored(q_TND, keys, values, rule)

    def _scored(self, q_TND: Tensor, keys: Tensor, values: Tensor, rule: LayerRule) -> Tensor:
        """One sequence after the other, its keys and values gathered from their pages."""
        layout, parts = self._layout, []
        queries = torch.split(q_TND, list(layout.query_lengths))
        for q_QND, context, table_P in zip(
            queries, layout.context_lengths_B.tolist(), layout.block_tables_BP, strict=True
        ):
            k_KMD, v_KMD = (gather_context(pages, table_P, context) for pages in (keys, values))
            parts.append(scored_attention(q_QND, k_KMD, v_KMD, **rule))
        return torch.cat(parts)
