# mypy: ignore-errors
"""Triton kernels of paged attention: chunked prefill and decode over block tables, the reduce, and cache writes.

Query heads that share a key/value head are packed into the rows of one dot: row r of a tile is query r // GROUP and
member r % GROUP, so a key is read once for all of them. With SPLIT > 0 a program walks one stretch of SPLIT keys and
leaves its part to the reduce kernel (flash-decoding, Dao et al. 2023); stretches are cut at multiples of SPLIT whatever
the batch, so neither their number nor their order depends on other sequences.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _attend_page(
    acc, maximum, total, q, k_ptr, v_ptr, table_ptr, position, start, high,
    k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys, wherever their pages lie, into a tile's output, running maximum and running sum."""
    key = start + tl.arange(0, BLOCK_N)
    inside = key < high
    dim = tl.arange(0, BLOCK_D)
    if MASKED:
        page = tl.load(table_ptr + key // PAGE, mask=inside, other=0)
    else:
        page = tl.load(table_ptr + key // PAGE)
    slot = key % PAGE
    k_rows = k_ptr + (page.to(tl.int64) * k_block_stride + slot * k_slot_stride)[:, None] + dim[None, :]
    v_rows = v_ptr + (page.to(tl.int64) * v_block_stride + slot * v_slot_stride)[:, None] + dim[None, :]
    if MASKED:
        stored = inside[:, None] & (dim < D)[None, :]
        k = tl.load(k_rows, mask=stored, other=0.0)
        v = tl.load(v_rows, mask=stored, other=0.0)
    elif D < BLOCK_D:
        k = tl.load(k_rows, mask=(dim < D)[None, :], other=0.0)
        v = tl.load(v_rows, mask=(dim < D)[None, :], other=0.0)
    else:
        k = tl.load(k_rows)
        v = tl.load(v_rows)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        seen = (key[None, :] <= position[:, None]) & inside[None, :]
        if WINDOWED:
            seen = seen & (position[:, None] - key[None, :] < window)
        score = tl.where(seen, score, float("-inf"))
    new_max = tl.maximum(maximum, tl.max(score, 1) * scale_log2)
    centre = new_max
    if MASKED:  # a row may have seen no key yet
        centre = tl.where(new_max == float("-inf"), 0.0, new_max)
    p = tl.exp2(score * scale_log2 - centre[:, None])
    decay = tl.exp2(maximum - centre)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, total * decay + tl.sum(p, 1)


@triton.jit
def paged_attention_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, part_ptr, part_lse_ptr, tables_ptr, context_ptr, cu_ptr, tiles_ptr,
    q_stride, q_head_stride, out_stride, out_head_stride,
    k_block_stride, k_slot_stride, k_head_stride, v_block_stride, v_slot_stride, v_head_stride,
    table_stride, part_rows, scale_log2, window,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr, SPLIT: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one key/value head, over all its keys or over one stretch of them.

    Parts are float32 [tiles, M, splits, part_rows, BLOCK_D] with base-2 log-sum-exps [tiles, M, splits, part_rows];
    part_rows is the number of rows of a tile that can hold a query. Stretches past a context are not written.
    """
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    key_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = tl.load(tiles_ptr + 2 * tile)
    first = tl.load(tiles_ptr + 2 * tile + 1)
    begin = tl.load(cu_ptr + sequence)
    queries = tl.load(cu_ptr + sequence + 1) - begin
    keys = tl.load(context_ptr + sequence)
    if SPLIT > 0 and split * SPLIT >= keys:  # the grid reaches as far as the longest context
        return
    row = tl.arange(0, BLOCK_M)
    query = first + row // GROUP
    head = key_head * GROUP + row % GROUP
    real = (row < QUERIES * GROUP) & (query < queries)
    first_position = keys - queries + first
    position = keys - queries + query

    low = 0
    high = tl.minimum(keys, first_position + QUERIES)
    if SPLIT > 0:
        low = split * SPLIT
        high = tl.minimum(high, low + SPLIT)
    full_low = low
    if WINDOWED:
        low = tl.maximum(low, tl.maximum(0, first_position - window + 1) // BLOCK_N * BLOCK_N)
        full_low = tl.cdiv(tl.maximum(0, first_position + QUERIES - window), BLOCK_N) * BLOCK_N
        full_low = tl.minimum(tl.maximum(full_low, low), tl.maximum(high, low))
    full_high = tl.minimum(high, first_position + 1) // BLOCK_N * BLOCK_N
    full_high = tl.maximum(full_low, full_high)

    dim = tl.arange(0, BLOCK_D)
    loaded = real[:, None] & (dim < D)[None, :]
    token = begin.to(tl.int64) + query
    q = tl.load(q_ptr + (token * q_stride + head * q_head_stride)[:, None] + dim[None, :], mask=loaded, other=0.0)
    k_ptr += key_head * k_head_stride
    v_ptr += key_head * v_head_stride
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if WINDOWED:
        for start in range(low, full_low, BLOCK_N):
            acc, maximum, total = _attend_page(
                acc, maximum, total, q, k_ptr, v_ptr, table_ptr, position, start, high,
                k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, scale_log2, window,
                D, BLOCK_D, BLOCK_N, PAGE, WINDOWED, True, PRECISION,
            )  # fmt: skip
    for start in range(full_low, full_high, BLOCK_N):
        acc, maximum, total = _attend_page(
            acc, maximum, total, q, k_ptr, v_ptr, table_ptr, position, start, high,
            k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, scale_log2, window,
            D, BLOCK_D, BLOCK_N, PAGE, WINDOWED, False, PRECISION,
        )  # fmt: skip
    for start in range(full_high, high, BLOCK_N):
        acc, maximum, total = _attend_page(
            acc, maximum, total, q, k_ptr, v_ptr, table_ptr, position, start, high,
            k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, scale_log2, window,
            D, BLOCK_D, BLOCK_N, PAGE, WINDOWED, True, PRECISION,
        )  # fmt: skip
    divisor = tl.where(total > 0.0, total, 1.0)
    acc = acc / divisor[:, None]
    if SPLIT > 0:
        part = ((tile.to(tl.int64) * tl.num_programs(1) + key_head) * tl.num_programs(2) + split) * part_rows + row
        tl.store(part_lse_ptr + part, tl.where(total > 0.0, maximum + tl.log2(divisor), float("-inf")), mask=real)
        tl.store(part_ptr + part[:, None] * BLOCK_D + dim[None, :], acc, mask=loaded)
    else:
        out = out_ptr + (token * out_stride + head * out_head_stride)[:, None] + dim[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=loaded)


@triton.jit
def reduce_splits(
    part_ptr, part_lse_ptr, out_ptr, context_ptr, cu_ptr, tiles_ptr, splits, part_rows, out_stride, out_head_stride,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One query of one head: its parts, weighted by their sums, in order. A query without keys comes out as 0."""
    tile = tl.program_id(0)
    key_head = tl.program_id(1)
    row = tl.program_id(2)
    sequence = tl.load(tiles_ptr + 2 * tile)
    first = tl.load(tiles_ptr + 2 * tile + 1)
    begin = tl.load(cu_ptr + sequence)
    query = first + row // GROUP
    if query < tl.load(cu_ptr + sequence + 1) - begin:
        used = tl.cdiv(tl.load(context_ptr + sequence), SPLIT)
        base = (tile.to(tl.int64) * tl.num_programs(1) + key_head) * splits * part_rows + row
        dim = tl.arange(0, BLOCK_D)
        maximum = float("-inf")
        total = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for start in range(0, used, BLOCK_S):
            split = start + tl.arange(0, BLOCK_S)
            lse = tl.load(part_lse_ptr + base + split * part_rows, mask=split < used, other=float("-inf"))
            new_max = tl.maximum(maximum, tl.max(lse, 0))
            centre = tl.where(new_max == float("-inf"), 0.0, new_max)
            weight = tl.exp2(lse - centre)
            decay = tl.exp2(maximum - centre)
            loaded = (weight > 0.0)[:, None] & (dim < D)[None, :]
            part = part_ptr + (base + split * part_rows)[:, None] * BLOCK_D + dim[None, :]
            acc = acc * decay + tl.sum(tl.load(part, mask=loaded, other=0.0) * weight[:, None], 0)
            total = total * decay + tl.sum(weight, 0)
            maximum = new_max
        acc = acc / tl.where(total > 0.0, total, 1.0)
        out = out_ptr + (begin + query).to(tl.int64) * out_stride + (key_head * GROUP + row % GROUP) * out_head_stride
        tl.store(out + dim, acc.to(out_ptr.dtype.element_ty), mask=dim < D)


@triton.jit
def write_cache(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr,
    k_stride, k_head_stride, v_stride, v_head_stride,
    k_block_stride, k_slot_stride, k_cache_head_stride, v_block_stride, v_slot_stride, v_cache_head_stride,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """One token: its keys and values to their slot (block · PAGE + offset); a negative slot writes nothing."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot >= 0:
        head = tl.arange(0, BLOCK_H)[:, None]
        dim = tl.arange(0, BLOCK_D)[None, :]
        inside = (head < HEADS) & (dim < D)
        block = slot // PAGE
        offset = slot % PAGE
        k = tl.load(k_ptr + token * k_stride + head * k_head_stride + dim, mask=inside)
        k_out = k_cache_ptr + block * k_block_stride + offset * k_slot_stride + head * k_cache_head_stride + dim
        tl.store(k_out, k.to(k_cache_ptr.dtype.element_ty), mask=inside)
        v = tl.load(v_ptr + token * v_stride + head * v_head_stride + dim, mask=inside)
        v_out = v_cache_ptr + block * v_block_stride + offset * v_slot_stride + head * v_cache_head_stride + dim
        tl.store(v_out, v.to(v_cache_ptr.dtype.element_ty), mask=inside)
