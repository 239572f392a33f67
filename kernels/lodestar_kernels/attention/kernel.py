# mypy: ignore-errors
"""Triton kernels of packed attention: FlashAttention-2 forward and backward (Dao, 2023, arXiv:2307.08691).

A program owns one tile of one sequence, found in a table of (sequence, first position) rows, and walks the other side
in blocks: first those a window cuts, then those that every row sees whole, then those on the diagonal or at the end.
Scores live in registers, in base 2: p = 2^(s − lse) with s and lse scaled by log2(e). The backward runs one kernel over
tiles of keys for dK and dV (all query heads of a group in one program) and one over tiles of queries for dQ; each sum
has one owner and one order, so no atomics are needed and results are deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(cu_ptr, tiles_ptr):
    """Start of the program's sequence in the batch, its length, and the tile's first position in it."""
    tile = tl.program_id(0)
    sequence = tl.load(tiles_ptr + 2 * tile)
    first = tl.load(tiles_ptr + 2 * tile + 1)
    begin = tl.load(cu_ptr + sequence)
    length = tl.load(cu_ptr + sequence + 1) - begin
    return begin.to(tl.int64), length, first


@triton.jit
def _rows(base_ptr, position, stride, length, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a sequence [block, BLOCK_D]; 0 past its end and past the head dimension."""
    dim = tl.arange(0, BLOCK_D)
    inside = (position < length)[:, None]
    if D < BLOCK_D:
        inside = inside & (dim < D)[None, :]
    return tl.load(base_ptr + position[:, None] * stride + dim[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(base_ptr, position, stride, length, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    dim = tl.arange(0, BLOCK_D)
    inside = (position < length)[:, None] & (dim < D)[None, :]
    tl.store(base_ptr + position[:, None] * stride + dim[None, :], value.to(base_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _seen(query, key, length, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Which (query, key) pairs count; the two broadcast against each other."""
    seen = key < length
    if CAUSAL:
        seen = seen & (key <= query)
    if WINDOWED:
        seen = seen & (query - key < window)
        if not CAUSAL:
            seen = seen & (key - query < window)
    return seen


@triton.jit
def _key_segments(
    first, length, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr
):
    """Keys a tile of queries walks: [low, full_low) and [full_high, high) masked, [full_low, full_high) whole."""
    low = 0
    full_low = 0
    high = length
    full_high = length // BLOCK_N * BLOCK_N
    if CAUSAL:
        high = tl.minimum(high, first + BLOCK_M)
        full_high = tl.minimum(full_high, (first + 1) // BLOCK_N * BLOCK_N)
    if WINDOWED:
        low = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
        full_low = tl.cdiv(tl.maximum(0, first + BLOCK_M - window), BLOCK_N) * BLOCK_N
        full_low = tl.minimum(full_low, high)
        if not CAUSAL:
            high = tl.minimum(high, first + BLOCK_M + window - 1)
            full_high = tl.minimum(full_high, (first + window) // BLOCK_N * BLOCK_N)
            full_low = tl.minimum(full_low, high)
    return low, full_low, tl.maximum(full_low, full_high), high


@triton.jit
def _attend(
    acc, maximum, total, q, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys into a tile's output, running maximum and running sum."""
    key = start + tl.arange(0, BLOCK_N)
    k = _rows(k_ptr, key, k_stride, length, D, BLOCK_D)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
    if MASKED:
        score = tl.where(_seen(query[:, None], key[None, :], length, window, CAUSAL, WINDOWED), score, float("-inf"))
    new_max = tl.maximum(maximum, tl.max(score, 1))
    centre = new_max
    if MASKED:  # a row may have seen no key yet
        centre = tl.where(new_max == float("-inf"), 0.0, new_max)
    p = tl.exp2(score - centre[:, None])
    decay = tl.exp2(maximum - centre)
    v = _rows(v_ptr, key, v_stride, length, D, BLOCK_D)
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, total * decay + tl.sum(p, 1)


@triton.jit
def attention_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_ptr, tiles_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, out_stride, out_head_stride,
    tokens, scale_log2, window,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: its output rows, and their log-sum-exp in base 2 (lse [N, T])."""
    begin, length, first = _tile(cu_ptr, tiles_ptr)
    head = tl.program_id(1)
    query = first + tl.arange(0, BLOCK_M)
    q = _rows(q_ptr + begin * q_stride + head * q_head_stride, query, q_stride, length, D, BLOCK_D)
    k_ptr += begin * k_stride + head // GROUP * k_head_stride
    v_ptr += begin * v_stride + head // GROUP * v_head_stride
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    low, full_low, full_high, high = _key_segments(first, length, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED)
    if WINDOWED:
        for start in range(low, full_low, BLOCK_N):
            acc, maximum, total = _attend(
                acc, maximum, total, q, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
                D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, True, PRECISION,
            )  # fmt: skip
    for start in range(full_low, full_high, BLOCK_N):
        acc, maximum, total = _attend(
            acc, maximum, total, q, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
            D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, False, PRECISION,
        )  # fmt: skip
    for start in range(full_high, high, BLOCK_N):
        acc, maximum, total = _attend(
            acc, maximum, total, q, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
            D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, True, PRECISION,
        )  # fmt: skip
    total = tl.where(total > 0.0, total, 1.0)  # rows past the end may have seen nothing
    out_ptr += begin * out_stride + head * out_head_stride
    _store_rows(out_ptr, query, out_stride, length, acc / total[:, None], D, BLOCK_D)
    lse_row = lse_ptr + head.to(tl.int64) * tokens + begin + query
    tl.store(lse_row, maximum + tl.log2(total), mask=query < length)


@triton.jit
def output_dot_gradient(
    out_ptr, grad_ptr, delta_ptr, out_stride, out_head_stride, grad_stride, grad_head_stride, tokens,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta [N, T] = Σ_d out · dout, what the softmax backward subtracts in every row."""
    head = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    position = tl.arange(0, BLOCK_M)
    left = (tokens - first).to(tl.int32)
    out = _rows(out_ptr + first * out_stride + head * out_head_stride, position, out_stride, left, D, BLOCK_D)
    grad = _rows(grad_ptr + first * grad_stride + head * grad_head_stride, position, grad_stride, left, D, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * tokens + first + position, delta, mask=position < left)


@triton.jit
def _query_step(
    dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, key, start, length, q_stride, grad_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to a tile's dK and dV. Rows past the end add nothing: their q and dout are 0."""
    query = start + tl.arange(0, BLOCK_M)
    q = _rows(q_ptr, query, q_stride, length, D, BLOCK_D)
    lse = tl.load(lse_ptr + query, mask=query < length, other=0.0)
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
    if MASKED:
        score = tl.where(_seen(query[None, :], key[:, None], length, window, CAUSAL, WINDOWED), score, float("-inf"))
    p = tl.exp2(score - lse[None, :])
    grad = _rows(grad_ptr, query, grad_stride, length, D, BLOCK_D)
    dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
    delta = tl.load(delta_ptr + query, mask=query < length, other=0.0)
    ds = p * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def attention_key_gradient(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, cu_ptr, tiles_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, grad_stride, grad_head_stride,
    dk_stride, dk_head_stride, tokens, scale, scale_log2, window,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one key/value head: its rows of dK and dV (which share their strides)."""
    begin, length, first = _tile(cu_ptr, tiles_ptr)
    key_head = tl.program_id(1)
    key = first + tl.arange(0, BLOCK_N)
    k = _rows(k_ptr + begin * k_stride + key_head * k_head_stride, key, k_stride, length, D, BLOCK_D)
    v = _rows(v_ptr + begin * v_stride + key_head * v_head_stride, key, v_stride, length, D, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    low = 0
    full_low = 0
    high = length
    if CAUSAL:
        low = first // BLOCK_M * BLOCK_M
        full_low = tl.minimum(tl.cdiv(first + BLOCK_N - 1, BLOCK_M) * BLOCK_M, tl.cdiv(length, BLOCK_M) * BLOCK_M)
    if WINDOWED:
        high = tl.minimum(high, first + BLOCK_N - 1 + window)
        if not CAUSAL:
            low = tl.maximum(0, first - window + 1) // BLOCK_M * BLOCK_M
        full_low = tl.cdiv(high - low, BLOCK_M) * BLOCK_M + low  # a window cuts every block: all of them are masked
    for member in range(GROUP):
        head = key_head * GROUP + member
        q_head_ptr = q_ptr + begin * q_stride + head * q_head_stride
        grad_head_ptr = grad_ptr + begin * grad_stride + head * grad_head_stride
        row = head.to(tl.int64) * tokens + begin
        for start in range(low, full_low, BLOCK_M):
            dk, dv = _query_step(
                dk, dv, k, v, q_head_ptr, grad_head_ptr, lse_ptr + row, delta_ptr + row, key, start, length,
                q_stride, grad_stride, scale_log2, window, D, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, True, PRECISION,
            )  # fmt: skip
        for start in range(full_low, high, BLOCK_M):
            dk, dv = _query_step(
                dk, dv, k, v, q_head_ptr, grad_head_ptr, lse_ptr + row, delta_ptr + row, key, start, length,
                q_stride, grad_stride, scale_log2, window, D, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, False, PRECISION,
            )  # fmt: skip
    offset = begin * dk_stride + key_head * dk_head_stride
    _store_rows(dk_ptr + offset, key, dk_stride, length, dk * scale, D, BLOCK_D)
    _store_rows(dv_ptr + offset, key, dk_stride, length, dv, D, BLOCK_D)


@triton.jit
def _key_step(
    dq, q, grad, lse, delta, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to a tile's dQ."""
    key = start + tl.arange(0, BLOCK_N)
    k = _rows(k_ptr, key, k_stride, length, D, BLOCK_D)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
    if MASKED:
        score = tl.where(_seen(query[:, None], key[None, :], length, window, CAUSAL, WINDOWED), score, float("-inf"))
    p = tl.exp2(score - lse[:, None])
    v = _rows(v_ptr, key, v_stride, length, D, BLOCK_D)
    ds = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def attention_query_gradient(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, cu_ptr, tiles_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, grad_stride, grad_head_stride,
    dq_stride, dq_head_stride, tokens, scale, scale_log2, window,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: its rows of dQ."""
    begin, length, first = _tile(cu_ptr, tiles_ptr)
    head = tl.program_id(1)
    query = first + tl.arange(0, BLOCK_M)
    q = _rows(q_ptr + begin * q_stride + head * q_head_stride, query, q_stride, length, D, BLOCK_D)
    grad = _rows(grad_ptr + begin * grad_stride + head * grad_head_stride, query, grad_stride, length, D, BLOCK_D)
    row = head.to(tl.int64) * tokens + begin + query
    lse = tl.load(lse_ptr + row, mask=query < length, other=0.0)
    delta = tl.load(delta_ptr + row, mask=query < length, other=0.0)
    k_ptr += begin * k_stride + head // GROUP * k_head_stride
    v_ptr += begin * v_stride + head // GROUP * v_head_stride
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    low, full_low, full_high, high = _key_segments(first, length, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED)
    if WINDOWED:
        for start in range(low, full_low, BLOCK_N):
            dq = _key_step(
                dq, q, grad, lse, delta, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
                D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, True, PRECISION,
            )  # fmt: skip
    for start in range(full_low, full_high, BLOCK_N):
        dq = _key_step(
            dq, q, grad, lse, delta, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
            D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, False, PRECISION,
        )  # fmt: skip
    for start in range(full_high, high, BLOCK_N):
        dq = _key_step(
            dq, q, grad, lse, delta, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
            D, BLOCK_D, BLOCK_N, CAUSAL, WINDOWED, True, PRECISION,
        )  # fmt: skip
    _store_rows(dq_ptr + begin * dq_stride + head * dq_head_stride, query, dq_stride, length, dq * scale, D, BLOCK_D)
