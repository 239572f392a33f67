"""Launches of the paged-attention kernels: short queries by splits of the keys, long ones by tiles of queries."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from lodestar_kernels.attention.flash import LOG2_E, PRECISION, padded_dim
from lodestar_kernels.paged_attention.kernel import paged_attention_forward, reduce_splits, write_cache
from lodestar_kernels.paged_attention.layout import PagedLayout
from lodestar_kernels.tuning import Blocks, Key, Tuner, interpreted

# Keys per split. Fixed, so that the order of a sum depends on its own context alone; a part costs 8·D bytes of traffic
# per head against 4·D·SPLIT / GROUP bytes of 16-bit keys and values.
SPLIT = 512
REDUCE_BLOCK = 64
"""Parts that the reduce loads at once: 128K keys are 256 parts, and every block of them waits for memory twice."""
NO_LIMIT = 1 << 30


def decode_candidates(key: Key) -> list[Blocks]:
    """Rows of packed queries × blocks of keys for few new tokens; memory-bound, so depth matters most."""
    dim, size, group = padded_dim(int(key[0])), key[1], key[2]
    rows = max(16, triton.next_power_of_2(group))
    if interpreted():
        return [Blocks(rows, 32)]
    if size == 4:
        return [Blocks(rows, 32, 8, 1) if dim == 256 else Blocks(rows, 32, 4, 2)]
    if dim == 256:
        return [Blocks(rows, 32, 4, 3), Blocks(rows, 64, 4, 2)]
    return [Blocks(rows, 64, 4, 3), Blocks(rows, 128, 4, 2), Blocks(rows, 64, 2, 3), Blocks(rows, 32, 2, 4)]


def prefill_candidates(key: Key) -> list[Blocks]:
    """Tiles of packed queries × blocks of keys for many new tokens."""
    dim, size, group = padded_dim(int(key[0])), key[1], key[2]
    least = triton.next_power_of_2(group)
    if interpreted():
        return [Blocks(max(32, least), 32)]
    if size == 4:
        return [Blocks(max(16, least), 16, 8, 1) if dim == 256 else Blocks(max(32, least), 32, 8, 1)]
    if dim == 256:
        return [Blocks(max(64, least), 32, 8, 2), Blocks(max(128, least), 32, 8, 2), Blocks(max(32, least), 16, 4, 2)]
    return [Blocks(max(128, least), 64, 8, 2), Blocks(max(64, least), 64, 4, 2), Blocks(max(64, least), 32, 4, 2)]


DECODE = Tuner("paged-decode", decode_candidates)
PREFILL = Tuner("paged-prefill", prefill_candidates)


def problem_key(q_TND: Tensor, k_cache_PSMD: Tensor, window: int | None) -> Key:
    """What the best blocks depend on: head dimension, bytes per element, group size, page size, window."""
    _, page, key_heads, dim = k_cache_PSMD.shape
    return (dim, q_TND.element_size(), q_TND.shape[1] // key_heads, page, window is not None)


def decode_queries(group: int) -> int:
    """New tokens up to which a sequence takes the split path: as many as fill the smallest tile."""
    return max(1, 16 // group)


def run_paged_attention(
    q_TND: Tensor, k_cache_PSMD: Tensor, v_cache_PSMD: Tensor, layout: PagedLayout, scale: float, window: int | None
) -> Tensor:
    """Attention of every sequence, each on the path that its own number of new tokens decides."""
    key = problem_key(q_TND, k_cache_PSMD, window)
    out_TND = torch.empty_like(q_TND)
    inputs = (q_TND, k_cache_PSMD, v_cache_PSMD, out_TND, layout, scale, window)
    limit = decode_queries(q_TND.shape[1] // k_cache_PSMD.shape[2])
    if any(0 < queries <= limit for queries in layout.query_lengths):
        DECODE.launch(key, lambda blocks: run_decode(blocks, *inputs))
    if any(queries > limit for queries in layout.query_lengths):
        PREFILL.launch(key, lambda blocks: run_prefill(blocks, *inputs))
    return out_TND


def run_decode(
    blocks: Blocks,
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    out_TND: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None,
) -> None:
    """Sequences with few new tokens: one program per stretch of SPLIT keys, then the reduce."""
    key_heads, dim = k_cache_PSMD.shape[2:]
    group = q_TND.shape[1] // key_heads
    limit = decode_queries(group)
    tiles = layout.tiles(1, limit, blocks.rows // group)
    splits = triton.cdiv(layout.max_context, SPLIT)
    rows = max(queries for queries in layout.query_lengths if queries <= limit) * group
    part_lse = q_TND.new_empty(len(tiles), key_heads, splits, rows, dtype=torch.float32)
    part = q_TND.new_empty(*part_lse.shape, padded_dim(dim), dtype=torch.float32)
    _launch(blocks, (len(tiles), key_heads, splits), SPLIT, part, part_lse, rows, tiles,
            q_TND, k_cache_PSMD, v_cache_PSMD, out_TND, layout, scale, window)  # fmt: skip
    reduce_splits[(len(tiles), key_heads, rows)](
        part, part_lse, out_TND, layout.context_lengths_B, layout.cu_seqlens, tiles, splits, rows,
        *out_TND.stride()[:2], GROUP=group, D=dim, BLOCK_D=padded_dim(dim), SPLIT=SPLIT, BLOCK_S=REDUCE_BLOCK,
    )  # fmt: skip


def run_prefill(
    blocks: Blocks,
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    out_TND: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None,
) -> None:
    """Sequences with many new tokens: one program per tile of queries, over all its keys."""
    key_heads = k_cache_PSMD.shape[2]
    group = q_TND.shape[1] // key_heads
    tiles = layout.tiles(decode_queries(group) + 1, NO_LIMIT, blocks.rows // group)
    _launch(blocks, (len(tiles), key_heads, 1), 0, out_TND, out_TND, 0, tiles,
            q_TND, k_cache_PSMD, v_cache_PSMD, out_TND, layout, scale, window)  # fmt: skip


def _launch(
    blocks: Blocks,
    grid: tuple[int, int, int],
    split: int,
    part: Tensor,
    part_lse: Tensor,
    part_rows: int,
    tiles: Tensor,
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    out_TND: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None,
) -> None:
    page, key_heads, dim = k_cache_PSMD.shape[1:]
    paged_attention_forward[grid](
        q_TND, k_cache_PSMD, v_cache_PSMD, out_TND, part, part_lse, layout.block_tables_BP, layout.context_lengths_B,
        layout.cu_seqlens, tiles, *q_TND.stride()[:2], *out_TND.stride()[:2],
        *k_cache_PSMD.stride()[:3], *v_cache_PSMD.stride()[:3], layout.block_tables_BP.stride(0), part_rows,
        scale * LOG2_E, window or 0,
        GROUP=q_TND.shape[1] // key_heads, D=dim, BLOCK_D=padded_dim(dim), BLOCK_M=blocks.rows, BLOCK_N=blocks.columns,
        PAGE=page, SPLIT=split, WINDOWED=window is not None, PRECISION=PRECISION,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def run_write(k_TMD: Tensor, v_TMD: Tensor, k_cache_PSMD: Tensor, v_cache_PSMD: Tensor, slots_T: Tensor) -> None:
    """Copy new keys and values to their slots."""
    page, heads, dim = k_cache_PSMD.shape[1:]
    write_cache[(len(slots_T),)](
        k_TMD, v_TMD, k_cache_PSMD, v_cache_PSMD, slots_T, *k_TMD.stride()[:2], *v_TMD.stride()[:2],
        *k_cache_PSMD.stride()[:3], *v_cache_PSMD.stride()[:3],
        HEADS=heads, D=dim, BLOCK_D=padded_dim(dim), BLOCK_H=triton.next_power_of_2(heads), PAGE=page,
    )  # fmt: skip
