"""How sequences of different lengths lie end to end in one batch of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# Scores of one group of short sequences stay within a core's cache (measured on a 2-core x86 machine).
GROUP_SCORES = 1 << 17
# Sequences up to this length are faster as batched matrix products than one fused attention each (measured likewise).
GROUPED_LENGTH = 256
# Padding allowed inside a group, as a share of its longest sequence.
GROUP_SLACK = 0.1


class PaddedRows(NamedTuple):
    """Between the rows of a packed [T·heads, D] tensor and those of its padded copy, where all groups lie end to end.

    source: the packed row behind each padded row; padding: padded rows that stand for nothing; packed and real: every
    packed row of a grouped sequence, rising, and the padded row that holds it.
    """

    source: Tensor
    padding: Tensor
    packed: Tensor
    real: Tensor


class PaddedGroup(NamedTuple):
    """Sequences of similar length, right-padded to `length`."""

    sequences: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class PaddedGroups:
    """Groups of sequences, for batched products over (sequence, head).

    Padded rows are ordered (group, sequence, head, position). A padding row repeats its sequence's first token:
    causality hides it from every real query, and its own output is never read.
    """

    groups: tuple[PaddedGroup, ...]
    query: PaddedRows
    key: PaddedRows


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """Boundaries of packed sequences, and what attention derives from them once per batch.

    lengths: tokens of each sequence, e.g. (3, 0, 5); cu_seqlens: int32 [B + 1], e.g. [0, 3, 3, 8], on the device of the
    batch; max_seqlen: 5; tokens: 8. Build it once per batch and pass it to every layer.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_seqlen: int
    tokens: int
    _groups: dict[tuple[int, int], PaddedGroups] = field(default_factory=dict, repr=False)
    _tiles: dict[tuple[int, bool, bool], Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_lengths(lengths: Sequence[int], device: torch.device | str = "cpu") -> PackedLayout:
        """Layout of sequences of the given lengths (each ≥ 0) lying one after the other."""
        if any(length < 0 for length in lengths):
            raise ValueError(f"lengths must not be negative, got {min(lengths)}")
        cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(tuple(lengths), dtype=torch.int32), 0, dtype=torch.int32, out=cu_seqlens[1:])
        return PackedLayout(tuple(lengths), cu_seqlens.to(device), max(lengths, default=0), sum(lengths))

    @staticmethod
    def from_cu_seqlens(cu_seqlens: Tensor) -> PackedLayout:
        """Layout of int32 boundaries [B + 1] that start at 0 and never fall; remembered for the last few batches."""
        if cu_seqlens.ndim != 1 or cu_seqlens.numel() == 0 or cu_seqlens.dtype != torch.int32:
            raise ValueError(f"cu_seqlens must be int32 [B + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}")
        return _layout_of(tuple(cu_seqlens.tolist()), cu_seqlens.device)

    @property
    def starts(self) -> list[int]:
        """First token of each sequence."""
        starts, total = [], 0
        for length in self.lengths:
            starts.append(total)
            total += length
        return starts

    def tiles(self, block: int, causal: bool, of_keys: bool = False) -> Tensor:
        """Tiles of `block` positions, int32 [tiles, 2] of (sequence, first position), longest work first.

        In causal attention a tile of queries walks the keys before it, a tile of keys the queries after it.
        """
        key = (block, causal, of_keys)
        if key not in self._tiles:
            tiles = [(i, first) for i, length in enumerate(self.lengths) for first in range(0, length, block)]
            if causal:
                tiles.sort(key=lambda tile: tile[1] - (self.lengths[tile[0]] if of_keys else 0), reverse=not of_keys)
            else:
                tiles.sort(key=lambda tile: -self.lengths[tile[0]])
            self._tiles[key] = torch.tensor(tiles, dtype=torch.int32).reshape(-1, 2).to(self.cu_seqlens.device)
        return self._tiles[key]

    def groups(self, query_heads: int, key_heads: int) -> PaddedGroups:
        """Every sequence of 1 to GROUPED_LENGTH tokens, padded; built on first use."""
        key = (query_heads, key_heads)
        if key not in self._groups:
            members = self._similar(query_heads)
            groups = tuple(PaddedGroup(len(group), self.lengths[group[0]]) for group in members)
            self._groups[key] = PaddedGroups(groups, *(self._rows(members, heads) for heads in key))
        return self._groups[key]

    def _similar(self, query_heads: int) -> list[list[int]]:
        """Sequence numbers in groups of similar length whose scores fit the cache."""
        short = [i for i, length in enumerate(self.lengths) if 0 < length <= GROUPED_LENGTH]
        groups: list[list[int]] = []
        longest = 0
        for i in sorted(short, key=lambda i: -self.lengths[i]):
            fits = bool(groups) and (len(groups[-1]) + 1) * query_heads * longest**2 <= GROUP_SCORES
            if fits and self.lengths[i] >= longest * (1 - GROUP_SLACK) - 2:
                groups[-1].append(i)
            else:
                groups.append([i])
                longest = self.lengths[i]
        return groups

    def _rows(self, groups: list[list[int]], heads: int) -> PaddedRows:
        starts = self.starts
        sources, reals = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.bool)]
        for members in groups:
            position_S = torch.arange(self.lengths[members[0]])
            real_BS = position_S < torch.tensor([self.lengths[i] for i in members])[:, None]
            token_BS = torch.tensor([starts[i] for i in members])[:, None] + torch.where(real_BS, position_S, 0)
            rows_BNS = token_BS[:, None, :] * heads + torch.arange(heads)[:, None]
            sources.append(rows_BNS.flatten())
            reals.append(real_BS[:, None, :].expand_as(rows_BNS).flatten())
        source, real = (torch.cat(parts) for parts in (sources, reals))
        rows = real.nonzero()[:, 0]
        packed, order = source[rows].sort()
        return PaddedRows(source, (~real).nonzero()[:, 0], packed, rows[order])


@lru_cache(maxsize=16)
def _layout_of(boundaries: tuple[int, ...], device: torch.device) -> PackedLayout:
    lengths = [end - start for start, end in pairwise(boundaries)]
    if boundaries[0] != 0 or any(length < 0 for length in lengths):
        raise ValueError(f"cu_seqlens must start at 0 and never fall, got {list(boundaries[:8])}…")
    return PackedLayout.from_lengths(lengths, device)
