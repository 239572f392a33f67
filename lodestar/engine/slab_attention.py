"""Attention over slabs: one step's rows against the keys and values of their sequences.

Decode reads every key and value once, and its products have one row per query head, which matrix libraries stream
slowly. Keys of neighbouring slabs are multiplied in one call per group; values of all rows are summed in a single
embedding bag, a weighted sum of table rows, at two to three times the bytes per second of a matrix product (measured).
Samples of one prompt hold copies of its keys and values; they read one copy together, in products of many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lodestar_kernels.attention.scored import scored_attention
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lodestar.model.attention import LayerRule, scores_plainly

if TYPE_CHECKING:
    from lodestar.engine.slabs import SlabCache

DETERMINISTIC_CHUNK = 64
"""Prompt tokens of one attention call when bits must not depend on how the prompt was cut."""
CALL_BYTES = 1 << 19
"""Keys and values read in the time that one more group costs (about 20 µs, measured on 2 x86 cores)."""


def group_rows(slots: list[int], lengths: list[int], token_bytes: int) -> list[tuple[int, int]]:
    """Runs of rows, ``(first, last + 1)``, whose keys are multiplied by one call.

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


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefix:
    """Decode rows whose first ``tokens`` keys and values are the same, and a slab that holds them."""

    rows: list[int]
    slot: int
    tokens: int

    def worth(self, token_bytes: int) -> bool:
        """Whether reading them together saves more than its two calls and the moves around them cost."""
        return (len(self.rows) - 1) * self.tokens * token_bytes > 4 * CALL_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    rows: slice
    slabs: slice
    within: Tensor | None
    """Positions of the rows among the slabs; None when every slab has a row."""
    first: int
    """Position from which on some row reads its own slab."""
    shortest: int
    longest: int

    def span(self, window: int | None) -> slice:
        """Positions that some row sees in its own slab."""
        return slice(self.first if window is None else max(0, self.shortest - window), self.longest)


@dataclass(frozen=True, slots=True, eq=False)
class _Reach:
    """What the decode rows see under one window: scores of positions ``low …`` are laid out [B, N, width].

    places_E, values_E and bags_BN leave out what is read as a shared prefix.
    """

    low: int
    width: int
    hidden_B11L: Tensor | None
    """Positions that a row does not see; None when all rows see all."""
    shared: list[tuple[slice | Tensor, SharedPrefix]]
    """Prefixes that are read together, and an index of their rows; none under a window."""
    places_E: Tensor
    """Of every visible score among all scores, row by row and head by head."""
    values_E: Tensor
    """The row of its value in the table [slabs · M · capacity, D]."""
    bags_BN: Tensor
    """Where each row and head begins in places_E."""


class SlabAttention:
    """The attention context of one step: decode rows first, one per slot, then the rows of each prompt chunk."""

    def __init__(
        self,
        cache: SlabCache,
        slots: list[int],
        lengths: list[int],
        groups: list[tuple[int, int]],
        chunks: list[tuple[int, int, int]],
        shared: Sequence[SharedPrefix] = (),
    ) -> None:
        """``lengths`` count the token of the row itself; chunks are (slot, start, end).

        Without groups every decode row is computed alone, at its exact length. Deterministic chunks are
        DETERMINISTIC_CHUNK tokens that start at a multiple of it; only a prompt's last may be shorter, and is padded,
        so that a token's attention is computed in the same shape whatever follows it.
        """
        self._cache = cache
        self._slots = slots
        self._lengths = lengths
        self._slots_B = torch.tensor(slots, dtype=torch.int64)
        self._positions_B = torch.tensor(lengths, dtype=torch.int64) - 1
        self._shared = shared
        self._own = [0] * len(slots)
        """Position from which on a row reads its own slab."""
        for prefix in self._shared:
            for row in prefix.rows:
                self._own[row] = prefix.tokens
        self._groups = [self._group(first, end) for first, end in groups]
        self._chunks = chunks
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._reaches: dict[tuple[int, int | None], _Reach] = {}

    def attend(self, layer: int, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, rule: LayerRule) -> Tensor:
        """Write the rows' keys and values, then attend; see lodestar.model.attention.AttentionContext.

        Rows beyond the chunks are padding and get 0. With fewer queries than keys only the decode rows attend.
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        decoded = len(self._slots)
        row = decoded
        for slot, start, end in self._chunks:
            rows = slice(row, row + end - start)
            keys[slot, :, start:end] = k_TMD[rows].transpose(0, 1)
            values[slot, :, start:end] = v_TMD[rows].transpose(0, 1)
            if self._cache.deterministic:  # read as padding, where 0 times the last owner's NaN would be NaN
                keys[slot, :, end : start + DETERMINISTIC_CHUNK] = 0
                values[slot, :, end : start + DETERMINISTIC_CHUNK] = 0
            row = rows.stop
        if decoded:
            keys.transpose(1, 2)[self._slots_B, self._positions_B] = k_TMD[:decoded]
            values.transpose(1, 2)[self._slots_B, self._positions_B] = v_TMD[:decoded]
        if not scores_plainly(rule):
            return self._scored(q_TND, keys, values, len(q_TND) == len(k_TMD), rule)
        scale, window = rule["scale"], rule["window"]
        if self._groups and len(q_TND) == decoded:
            return self._decode(q_TND, keys, values, scale, window)
        out_TND = torch.empty_like(q_TND, memory_format=torch.contiguous_format)
        if self._groups:
            out_TND[:decoded] = self._decode(q_TND[:decoded], keys, values, scale, window)
        else:
            for i, (slot, length) in enumerate(zip(self._slots, self._lengths, strict=True)):
                out_TND[i] = self._decode_alone(q_TND[i], keys[slot], values[slot], length, scale, window)
        row = decoded
        for number, (slot, start, end) in enumerate(self._chunks if len(q_TND) == len(k_TMD) else ()):
            rows = slice(row, row + end - start)
            out_TND[rows] = self._prefill(number, q_TND[rows], keys[slot], values[slot], start, end, scale, window)
            row = rows.stop
        out_TND[row:] = 0
        return out_TND

    def _scored(self, q_TND: Tensor, keys: Tensor, values: Tensor, prefills: bool, rule: LayerRule) -> Tensor:
        """Capped scores and sinks: one sequence after the other, in shapes that depend on nothing but its own."""
        out_TND = torch.zeros_like(q_TND, memory_format=torch.contiguous_format)
        for i, (slot, length) in enumerate(zip(self._slots, self._lengths, strict=True)):
            k_KMD, v_KMD = (x[slot, :, :length].transpose(0, 1) for x in (keys, values))
            out_TND[i] = scored_attention(q_TND[i : i + 1], k_KMD, v_KMD, **rule)[0]
        row = len(self._slots)
        for slot, start, end in self._chunks if prefills else ():
            tokens, rows = end - start, slice(row, row + end - start)
            stop = start + DETERMINISTIC_CHUNK if self._cache.deterministic else end
            q_SND = pad(q_TND[rows], (0, 0, 0, 0, 0, stop - start - tokens))
            k_KMD, v_KMD = (x[slot, :, :stop].transpose(0, 1) for x in (keys, values))
            out_TND[rows] = scored_attention(q_SND, k_KMD, v_KMD, **rule)[:tokens]
            row = rows.stop
        return out_TND

    def _group(self, first: int, end: int) -> _Group:
        base, last = self._slots[first], self._slots[end - 1]
        within = None if last - base == end - 1 - first else self._slots_B[first:end] - base
        members = self._lengths[first:end]
        own = min(self._own[first:end])
        return _Group(slice(first, end), slice(base, last + 1), within, own, min(members), max(members))

    def _decode(self, q_BND: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        reach = self._reach(q_BND.shape[1], window)
        # Query heads that share a key/value head are rows of one query.
        q_BMGD = (q_BND * scale).view(len(q_BND), keys.shape[1], -1, q_BND.shape[2])
        scores_BMGL = q_BMGD.new_empty(*q_BMGD.shape[:3], reach.width)
        for group in self._groups:
            span = group.span(window)
            part = _scores(q_BMGD[group.rows], keys[group.slabs, :, span], group.within)
            scores_BMGL[group.rows, :, :, span.start - reach.low : span.stop - reach.low] = part
        for rows, prefix in reach.shared:
            q_MSGD = q_BMGD[rows].transpose(0, 1)
            part_MRP = torch.bmm(q_MSGD.flatten(1, 2), keys[prefix.slot, :, : prefix.tokens].mT)
            scores_BMGL[rows, :, :, : prefix.tokens] = part_MRP.view(*q_MSGD.shape[:3], -1).transpose(0, 1)
        if reach.hidden_B11L is not None:
            scores_BMGL.masked_fill_(reach.hidden_B11L, -torch.inf)
        weights = scores_BMGL.softmax(-1, dtype=torch.float32).to(values.dtype)
        weights_E = weights.flatten().index_select(0, reach.places_E)
        table = values.flatten(0, 2)
        sums, *_ = torch.embedding_bag(table, reach.values_E, reach.bags_BN, False, 0, False, weights_E)
        sums_BMGD = sums.view(q_BMGD.shape)
        for rows, prefix in reach.shared:
            weights_MSGP = weights[rows, :, :, : prefix.tokens].transpose(0, 1)
            part_MRD = torch.bmm(weights_MSGP.flatten(1, 2), values[prefix.slot, :, : prefix.tokens])
            sums_BMGD[rows] += part_MRD.view(*weights_MSGP.shape[:3], -1).transpose(0, 1)
        return sums.view(q_BND.shape)

    def _reach(self, heads: int, window: int | None) -> _Reach:
        key = (heads, window)
        if key not in self._reaches:
            self._reaches[key] = self._new_reach(heads, window)
        return self._reaches[key]

    def _new_reach(self, heads: int, window: int | None) -> _Reach:
        slots, kv_heads, capacity, _ = self._cache.keys[0].shape
        dtype = np.int32 if slots * kv_heads * capacity < 2**31 else np.int64  # half the traffic where it does
        lengths_B = np.array(self._lengths, dtype=dtype)
        oldest_B: NDArray[Any] = np.array(self._own, dtype=dtype)
        if window is not None:
            oldest_B = np.maximum(lengths_B - window, 0)
        shared = self._shared if window is None else ()
        low = 0 if shared else min(group.span(window).start for group in self._groups)
        width = int(lengths_B.max()) - low
        columns_L = np.arange(low, low + width, dtype=dtype)
        hidden_BL = columns_L >= lengths_B[:, None]
        if window is not None:
            hidden_BL |= columns_L < oldest_B[:, None]
        # Per row and head: how many it sees, and where they begin among scores and among values.
        seen_F = np.repeat(lengths_B - oldest_B, heads)
        bags_F = np.cumsum(seen_F, dtype=dtype) - seen_F
        first_F = np.repeat(oldest_B, heads)
        kv_head_F = np.tile(np.arange(heads, dtype=dtype) // (heads // kv_heads), len(lengths_B))
        slabs_F = np.repeat(np.array(self._slots, dtype=dtype), heads) * kv_heads + kv_head_F
        scores_F = np.arange(len(seen_F), dtype=dtype) * width + first_F - low
        return _Reach(
            low=low,
            width=width,
            hidden_B11L=torch.from_numpy(hidden_BL)[:, None, None] if hidden_BL.any() else None,
            shared=[(_index(prefix.rows), prefix) for prefix in shared],
            places_E=_runs(scores_F, seen_F, bags_F),
            values_E=_runs(slabs_F * capacity + first_F, seen_F, bags_F),
            bags_BN=torch.from_numpy(bags_F),
        )

    def _decode_alone(
        self, q_ND: Tensor, keys: Tensor, values: Tensor, length: int, scale: float, window: int | None
    ) -> Tensor:
        seen = slice(0 if window is None else max(0, length - window), length)
        q_1MGD = q_ND.reshape(1, keys.shape[0], -1, q_ND.shape[1])
        return sdpa(q_1MGD, keys[None, :, seen], values[None, :, seen], scale=scale).reshape(q_ND.shape)

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


def _scores(q_BMGD: Tensor, keys_SMLD: Tensor, within: Tensor | None) -> Tensor:
    """Products of the rows' queries with the keys of their slabs, [B, M, G, L]."""
    if within is not None:
        q_BMGD = q_BMGD.new_zeros(len(keys_SMLD), *q_BMGD.shape[1:]).index_copy_(0, within, q_BMGD)
    if q_BMGD.shape[2] == 1:
        scores_SMGL = torch.matmul(keys_SMLD, q_BMGD.transpose(2, 3)).transpose(2, 3)
    else:
        scores_SMGL = torch.matmul(q_BMGD, keys_SMLD.transpose(2, 3))
    return scores_SMGL if within is None else scores_SMGL.index_select(0, within)


def _index(rows: list[int]) -> slice | Tensor:
    """Of rising rows; a slice, which copies nothing, where they are neighbours."""
    first, end = rows[0], rows[-1] + 1
    return slice(first, end) if end - first == len(rows) else torch.tensor(rows)


def _runs(first_F: NDArray[Any], count_F: NDArray[Any], begin_F: NDArray[Any]) -> Tensor:
    """``first, first + 1, …`` of every run, ``count`` of them, end to end; runs begin at ``begin_F`` in the outcome."""
    shift_F = first_F - begin_F
    return torch.from_numpy(np.arange(count_F.sum(), dtype=shift_F.dtype) + np.repeat(shift_F, count_F))
