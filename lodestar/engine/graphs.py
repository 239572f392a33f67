"""Decode steps of a GPU as CUDA graphs: one launch for a whole forward pass, from buffers that stay where they are.

A graph freezes its grids and every integer in them. Those are the rows of the step, the splits of the longest context
and the width of the block tables, so a graph is kept for each (rows, longest context), both rounded up: rows without a
sequence have no context and write nothing. What changes from step to step is copied into the buffers. Weights are
swapped in place, so graphs outlive them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lodestar_kernels.paged_attention import PagedLayout
from torch import Tensor

from lodestar.engine.pages import PagedCache, PagedStep
from lodestar.engine.sequence import Sequence
from lodestar.model.attention import AttentionContext

log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor, AttentionContext, int], Tensor]
"""(tokens_T, positions_T, context, rows) → float32 logits [rows, V]."""
SHORTEST_CONTEXT = 512
"""Contexts are rounded up to this times a power of two; the paged kernel's split is as long."""
WARM_UP_RUNS = 3


def rounded_rows(rows: int) -> int:
    """1, 2, 4, 8, then multiples of 8."""
    return 1 << (rows - 1).bit_length() if rows < 8 else -(-rows // 8) * 8


def rounded_context(tokens: int, capacity: int) -> int:
    """SHORTEST_CONTEXT × 1, 2, 4 …, at most ``capacity``."""
    pieces = -(-tokens // SHORTEST_CONTEXT)
    return min(capacity, SHORTEST_CONTEXT << (pieces - 1).bit_length())


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """One step's inputs: on the host, where they are written, and on the device, where the graph reads them."""

    host_numbers_4R: Tensor
    """int64: tokens, positions, slots, contexts."""
    host_tables_RP: Tensor
    numbers_4R: Tensor
    tables_RP: Tensor
    contexts_R: Tensor
    """int32, as the layout wants it."""


class DecodeGraphs:
    """Runs decode steps; a shape is captured when it comes up first."""

    def __init__(self, forward: Forward, cache: PagedCache, device: torch.device, *, capture: bool = True) -> None:
        """Without ``capture`` the same buffers feed plain calls, which needs no GPU."""
        self._forward = forward
        self._cache = cache
        self._device = device
        self._capture = capture
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        self._refused = False
        self.steps: dict[tuple[int, int], Callable[[list[Sequence]], Tensor]] = {}
        """By (rows, longest context)."""

    def __call__(self, sequences: list[Sequence]) -> Tensor | None:
        """Logits [≥ B, V] of sequences that get one token each; None where the model cannot be captured.

        They lie in the graph's own memory, until the next step of this shape.
        """
        longest = max(len(sequence.tokens) for sequence in sequences)
        key = rounded_rows(len(sequences)), rounded_context(longest, self._cache.capacity)
        if self._refused:
            return None
        if key not in self.steps:
            try:
                self.steps[key] = self._prepared(*key)
            except RuntimeError as error:
                if not self._capture:
                    raise
                log.warning("decoding goes on without CUDA graphs, which this model does not allow: %s", error)
                self._refused = True
                return None
        return self.steps[key](sequences)

    def _prepared(self, rows: int, context: int) -> Callable[[list[Sequence]], Tensor]:
        buffers = self._buffers(rows, self._cache.blocks_for(context))
        layout = PagedLayout(
            query_lengths=(1,) * rows,
            max_context=context,
            cu_seqlens=torch.arange(rows + 1, dtype=torch.int32, device=self._device),
            context_lengths_B=buffers.contexts_R,
            block_tables_BP=buffers.tables_RP,
        )
        tokens_R, positions_R, slots_R, _ = buffers.numbers_4R
        step = PagedStep(self._cache, layout, slots_R)

        def forward() -> Tensor:
            buffers.contexts_R.copy_(buffers.numbers_4R[3])
            return self._forward(tokens_R, positions_R, step, rows)

        replay = self._captured(forward) if self._capture else forward

        def run(sequences: list[Sequence]) -> Tensor:
            self._load(buffers, sequences)
            return replay()

        return run

    def _captured(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_RV = forward()

        def replay() -> Tensor:
            graph.replay()
            return logits_RV

        return replay

    def _buffers(self, rows: int, width: int) -> _Buffers:
        pinned = self._device.type == "cuda"
        host_numbers_4R = torch.zeros(4, rows, dtype=torch.int64, pin_memory=pinned)
        host_numbers_4R[2] = -1  # rows that write nothing
        host_tables_RP = torch.zeros(rows, width, dtype=torch.int32, pin_memory=pinned)
        return _Buffers(
            host_numbers_4R,
            host_tables_RP,
            host_numbers_4R.to(self._device, copy=True),
            host_tables_RP.to(self._device, copy=True),
            torch.zeros(rows, dtype=torch.int32, device=self._device),
        )

    def _load(self, buffers: _Buffers, sequences: list[Sequence]) -> None:
        """Copy a step's inputs in; the host's side is free again once the step's tokens have been read."""
        count = len(sequences)
        numbers_4R, tables_RP = buffers.host_numbers_4R.numpy(), buffers.host_tables_RP.numpy()
        block_tokens = self._cache.block_tokens
        contexts_B = np.array([len(sequence.tokens) for sequence in sequences])
        positions_B = contexts_B - 1
        tables_RP[:count] = self._cache.tables(sequences, tables_RP.shape[1])
        numbers_4R[:2, count:], numbers_4R[2, count:], numbers_4R[3, count:] = 0, -1, 0
        numbers_4R[0, :count] = [sequence.tokens[-1] for sequence in sequences]
        numbers_4R[1, :count] = positions_B
        blocks_B = tables_RP[np.arange(count), positions_B // block_tokens].astype(np.int64)
        numbers_4R[2, :count] = blocks_B * block_tokens + positions_B % block_tokens
        numbers_4R[3, :count] = contexts_B
        buffers.numbers_4R.copy_(buffers.host_numbers_4R, non_blocking=True)
        buffers.tables_RP.copy_(buffers.host_tables_RP, non_blocking=True)
