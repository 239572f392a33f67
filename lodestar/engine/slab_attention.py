"""Attention over slabs: one step's rows against the keys and values of their sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa

if TYPE_CHECKING:
    from lodestar.engine.slabs import SlabCache

DETERMINISTIC_CHUNK = 64
"""Prompt tokens of one attention call when bits must not depend on how the prompt was cut."""
CALL_BYTES = 1 << 19
"""Keys and values read in the time that one more group costs (about 25 µs, measured on 2 x86 cores)."""


def group_rows(slots: list[int], lengths: list[int], token_bytes: int) -> list[tuple[int, int]]:
    """Runs of rows, ``(first, last + 1)``, whose slabs are attended to by one call.

    A run reads (slabs from its first to its last, free ones between them too) × its longest length. Rows join the run
    before them while that reads at most CALL_BYTES more than two calls would. slots rise; lengths in tokens.
    """
    groups: list[tuple[int, int]] = []
    first = 0
    longest = 0
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        apart = (slots[row - 1] - slots[first] + 1) * longest + length if row else 0
        together = (slot - slots[first] + 1) * max(longest, length)
        if row and (together - apart) * token_bytes > CALL_BYTES:
            groups.append((first, row))
            first, longest = row, length
        else:
            longest = max(longest, length)
    if slots:
        groups.append((first, len(slots)))
    return groups


def group_cost(groups: list[tuple[int, int]], slots: list[int], lengths: list[int], token_bytes: int) -> int:
    """What one layer's decode reads in these groups, in bytes, a call counted as CALL_BYTES."""
    read = sum((slots[end - 1] - slots[first] + 1) * max(lengths[first:end]) for first, end in groups)
    return read * token_bytes + len(groups) * CALL_BYTES


@dataclass(slots=True, eq=False)
class _Group:
    rows: slice
    slabs: slice
    within: Tensor | None
    """Positions of the rows among the slabs; None when every slab has a row."""
    shortest: int
    longest: int


class SlabAttention:
    """The attention context of one step: decode rows first, one per slot, then the rows of each prompt chunk."""

    def __init__(
        self,
        cache: SlabCache,
        slots: list[int],
        lengths: list[int],
        groups: list[tuple[int, int]],
        chunks: list[tuple[int, int, int]],
    ) -> None:
        """``lengths`` count the token of the row itself; chunks are (slot, start, end).

        Deterministic chunks are DETERMINISTIC_CHUNK tokens that start at a multiple of it; only a prompt's last may be
        shorter, and is padded, so that a token's attention is computed in the same shape whatever follows it.
        """
        self._cache = cache
        self._decoded = len(slots)
        self._slots = torch.tensor(slots, dtype=torch.int64)
        self._positions = torch.tensor(lengths, dtype=torch.int64) - 1
        cache.mask[self._slots, :, :, self._positions] = 0
        self._groups = [self._group(slots, lengths, first, end) for first, end in groups]
        self._chunks = chunks
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(
        self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Write the rows' keys and values, then attend; see lodestar.model.attention.AttentionContext."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        decoded = self._decoded
        if decoded:
            keys.transpose(1, 2)[self._slots, self._positions] = k_TMD[:decoded]
            values.transpose(1, 2)[self._slots, self._positions] = v_TMD[:decoded]
        row = decoded
        for slot, start, end in self._chunks:
            rows = slice(row, row + end - start)
            keys[slot, :, start:end] = k_TMD[rows].transpose(0, 1)
            values[slot, :, start:end] = v_TMD[rows].transpose(0, 1)
            row = rows.stop
        out_TND = torch.empty_like(q_TND, memory_format=torch.contiguous_format)
        for number, group in enumerate(self._groups):
            out_TND[group.rows] = self._decode(number, group, q_TND[group.rows], keys, values, scale, window)
        row = decoded
        for number, (slot, start, end) in enumerate(self._chunks):
            rows = slice(row, row + end - start)
            out_TND[rows] = self._prefill(number, q_TND[rows], keys[slot], values[slot], start, end, scale, window)
            row = rows.stop
        out_TND[row:] = 0
        return out_TND

    def _group(self, slots: list[int], lengths: list[int], first: int, end: int) -> _Group:
        base = slots[first]
        slabs = slice(base, slots[end - 1] + 1)
        dense = slabs.stop - slabs.start == end - first
        within = None if dense else self._slots[first:end] - base
        members = lengths[first:end]
        return _Group(slice(first, end), slabs, within, min(members), max(members))

    def _decode(
        self, number: int, group: _Group, q_BND: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        oldest = 0 if window is None else max(0, group.shortest - window)
        span = slice(oldest, group.longest)
        kv_heads = keys.shape[1]
        if group.within is not None:
            slabs = group.slabs.stop - group.slabs.start
            q_BND = q_BND.new_zeros(slabs, *q_BND.shape[1:]).index_copy_(0, group.within, q_BND)
        # Query heads that share a key/value head are rows of one query.
        q_BMGD = q_BND.reshape(q_BND.shape[0], kv_heads, -1, q_BND.shape[2])
        mask = self._group_mask(number, group, span, window)
        keys_BMLD, values_BMLD = keys[group.slabs, :, span], values[group.slabs, :, span]
        if q_BMGD.shape[0] == 1:
            out_BMGD = sdpa(q_BMGD, keys_BMLD, values_BMLD, attn_mask=mask, scale=scale)
        else:
            # One query row per head leaves a fused kernel nothing to tile: plain products stream the cache faster.
            scores_BMGL = torch.matmul(q_BMGD * scale, keys_BMLD.transpose(2, 3))
            if mask is not None:
                scores_BMGL += mask
            weights_BMGL = scores_BMGL.softmax(-1, dtype=torch.float32).to(values_BMLD.dtype)
            out_BMGD = torch.matmul(weights_BMGL, values_BMLD)
        out_BND = out_BMGD.flatten(1, 2)
        return out_BND if group.within is None else out_BND.index_select(0, group.within)

    def _group_mask(self, number: int, group: _Group, span: slice, window: int | None) -> Tensor | None:
        if group.shortest == group.longest:
            return None
        narrow = window is not None and group.longest > window
        key = (number, window if narrow else None)
        if key not in self._masks:
            mask = self._cache.mask[group.slabs, :, :, span]
            if narrow:
                assert window is not None
                oldest = torch.zeros(mask.shape[0], dtype=torch.int64)
                rows = torch.arange(mask.shape[0]) if group.within is None else group.within
                oldest[rows] = self._positions[group.rows] - window + 1
                hidden = torch.arange(span.start, span.stop) < oldest[:, None]
                mask = mask.masked_fill(hidden[:, None, None], -torch.inf)
            self._masks[key] = mask
        return self._masks[key]

    def _prefill(
        self,
        number: int,
        q_SND: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        end: int,
        scale: float,
        window: int | None,
    ) -> Tensor:
        grouped = q_SND.shape[1] != keys.shape[0]
        whole = start == 0 and (window is None or end <= window)
        tokens = end - start
        if self._cache.deterministic:
            end = start + DETERMINISTIC_CHUNK
            q_SND = pad(q_SND, (0, 0, 0, 0, 0, end - start - tokens))
        oldest = 0 if window is None else max(0, start + 1 - window)
        mask = None if whole else self._chunk_mask(number, start, end, oldest, window, keys.dtype)
        out_NSD = sdpa(
            q_SND.transpose(0, 1)[None],
            keys[None, :, oldest:end],
            values[None, :, oldest:end],
            attn_mask=mask,
            is_causal=whole,
            scale=scale,
            enable_gqa=grouped,
        )[0]
        return out_NSD.transpose(0, 1)[:tokens]

    def _chunk_mask(
        self, number: int, start: int, end: int, oldest: int, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        key = (-1 - number, window)
        if key not in self._masks:
            query_S1 = torch.arange(start, end)[:, None]
            key_L = torch.arange(oldest, end)
            hidden = key_L > query_S1
            if window is not None:
                hidden |= key_L <= query_S1 - window
            self._masks[key] = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
        return self._masks[key]
