"""One step of a batch over a paged cache: which tokens are new, how long each context is, and where its pages lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PagedLayout:
    """Sequences of one step. Their new queries lie packed end to end and stand at the end of their contexts.

    query_lengths: new tokens of each sequence, e.g. (1, 1, 37); max_context: an upper bound of the context lengths that
    fixes the launch, e.g. 4096; cu_seqlens: int32 [B + 1] of the queries; context_lengths_B: int32, keys of each
    sequence with the new ones; block_tables_BP: int32, the cache block of every page in order.

    For a captured graph, ask for the `max_context` that it shall cover and rewrite the last two tensors in place
    between replays. A context of 0 marks a row without a sequence, whose output is 0.
    """

    query_lengths: tuple[int, ...]
    max_context: int
    cu_seqlens: Tensor
    context_lengths_B: Tensor
    block_tables_BP: Tensor
    _tiles: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_lengths(
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        block_tables_BP: Tensor,
        max_context: int | None = None,
    ) -> PagedLayout:
        """Layout on the device of `block_tables_BP` (int32 [B, P]); contexts include the new tokens."""
        if len(query_lengths) != len(context_lengths) or block_tables_BP.shape[:1] != (len(query_lengths),):
            raise ValueError(
                "query_lengths, context_lengths and block_tables_BP must agree in B, "
                f"got {len(query_lengths)}, {len(context_lengths)} and {list(block_tables_BP.shape)}"
            )
        if block_tables_BP.ndim != 2 or block_tables_BP.dtype != torch.int32:
            raise ValueError(
                f"block_tables_BP must be int32 [B, P], got {block_tables_BP.dtype} {list(block_tables_BP.shape)}"
            )
        for i, (queries, context) in enumerate(zip(query_lengths, context_lengths, strict=True)):
            if not 0 <= queries <= context:
                raise ValueError(f"sequence {i} has {queries} new tokens in a context of {context}")
        longest = max(context_lengths, default=0)
        if max_context is not None and max_context < longest:
            raise ValueError(f"max_context is {max_context} and a context has {longest} tokens")
        device = block_tables_BP.device
        cu_seqlens = torch.zeros(len(query_lengths) + 1, dtype=torch.int32)
        cu_seqlens[1:] = torch.tensor(tuple(query_lengths), dtype=torch.int32).cumsum(0)
        contexts_B = torch.tensor(tuple(context_lengths), dtype=torch.int32)
        return PagedLayout(
            tuple(query_lengths),
            longest if max_context is None else max_context,
            cu_seqlens.to(device),
            contexts_B.to(device),
            block_tables_BP,
        )

    @property
    def tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.query_lengths)

    def tiles(self, shortest: int, longest: int, queries: int) -> Tensor:
        """Tiles of `queries` positions of the sequences with `shortest` to `longest` new tokens.

        int32 [tiles, 2] of (sequence, first query), last positions first: they see the most keys.
        """
        key = (shortest, longest, queries)
        if key not in self._tiles:
            tiles = [
                (i, first)
                for i, length in enumerate(self.query_lengths)
                if shortest <= length <= longest
                for first in range(0, length, queries)
            ]
            tiles.sort(key=lambda tile: -tile[1])
            self._tiles[key] = torch.tensor(tiles, dtype=torch.int32).reshape(-1, 2).to(self.cu_seqlens.device)
        return self._tiles[key]
