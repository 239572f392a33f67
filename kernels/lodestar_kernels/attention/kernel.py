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
def _rows(
    base_ptr, start, stride, length, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr
):
    """Rows start … start + ROWS − 1 of a sequence, [ROWS, BLOCK_D]; 0 past its end and past the head dimension.

    WHOLE promises that all of them lie inside the sequence. Offsets within a sequence are 32-bit: 64 bits would cost
    the registers that the largest tiles do not have (op.py checks that they suffice).
    """
    row = start + tl.arange(0, ROWS)[:, None]
    dim = tl.arange(0, BLOCK_D)[None, :]
    if WHOLE and D == BLOCK_D:
        rows = tl.load(base_ptr + row * stride + dim)
    elif WHOLE:
        rows = tl.load(base_ptr + row * stride + dim, mask=dim < D, other=0.0)
    else:
        inside = row < length
        if D < BLOCK_D:
            inside = inside & (dim < D)
        rows = tl.load(base_ptr + row * stride + dim, mask=inside, other=0.0)
    return rows


@triton.jit
def _numbers(base_ptr, start, length, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """One float32 per row; 0 past the sequence's end."""
    row = start + tl.arange(0, ROWS)
    if WHOLE:
        numbers = tl.load(base_ptr + row)
    else:
        numbers = tl.load(base_ptr + row, mask=row < length, other=0.0)
    return numbers


@triton.jit
def _store_rows(base_ptr, start, stride, length, value, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    dim = tl.arange(0, BLOCK_D)[None, :]
    base_ptr += tl.cast(start, tl.int64) * stride
    inside = (start + row < length) & (dim < D)
    tl.store(base_ptr + row * stride + dim, value.to(base_ptr.dtype.element_ty), mask=inside)


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
def _query_segments(
    first, length, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr
):
    """Queries a tile of keys walks: [low, whole_low) and [whole_high, high) masked, [whole_low, whole_high) whole."""
    low = 0
    whole_low = 0
    high = length
    whole_high = length // BLOCK_M * BLOCK_M
    if CAUSAL:
        low = first // BLOCK_M * BLOCK_M
        whole_low = tl.cdiv(first + BLOCK_N - 1, BLOCK_M) * BLOCK_M
    if WINDOWED:
        high = tl.minimum(high, first + BLOCK_N - 1 + window)
        if not CAUSAL:
            low = tl.maximum(0, first - window + 1) // BLOCK_M * BLOCK_M
        whole_low = high + BLOCK_M  # a window cuts every block: all of them are masked
    whole_low = tl.minimum(whole_low, low + tl.cdiv(high - low, BLOCK_M) * BLOCK_M)
    return low, whole_low, tl.maximum(whole_low, whole_high), high


@triton.jit
def _attend(
    acc, maximum, total, q, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys into a tile's output, running maximum and running sum.

    Scores stay unscaled until the exponent, where scale and maximum are one multiply-add; the scale is positive.
    """
    k = _rows(k_ptr, start, k_stride, length, BLOCK_N, D, BLOCK_D, not MASKED)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        key = start + tl.arange(0, BLOCK_N)
        score = tl.where(_seen(query[:, None], key[None, :], length, window, CAUSAL, WINDOWED), score, float("-inf"))
    new_max = tl.maximum(maximum, tl.max(score, 1) * scale_log2)
    centre = new_max
    if MASKED:  # a row may have seen no key yet
        centre = tl.where(new_max == float("-inf"), 0.0, new_max)
    p = tl.exp2(score * scale_log2 - centre[:, None])
    decay = tl.exp2(maximum - centre)
    v = _rows(v_ptr, start, v_stride, length, BLOCK_N, D, BLOCK_D, not MASKED)
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
    head = tl.program_id(1).to(tl.int64)
    query = first + tl.arange(0, BLOCK_M)
    q_ptr += begin * q_stride + head * q_head_stride
    q = _rows(q_ptr, first, q_stride, length, BLOCK_M, D, BLOCK_D, False)
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
    _store_rows(out_ptr, first, out_stride, length, acc / total[:, None], BLOCK_M, D, BLOCK_D)
    lse_row = lse_ptr + head * tokens + begin + query
    tl.store(lse_row, maximum + tl.log2(total), mask=query < length)


@triton.jit
def output_dot_gradient(
    out_ptr, grad_ptr, delta_ptr, out_stride, out_head_stride, grad_stride, grad_head_stride, tokens,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta [N, T] = Σ_d out · dout, what the softmax backward subtracts in every row."""
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    left = tokens - first
    out_ptr += first * out_stride + head * out_head_stride
    grad_ptr += first * grad_stride + head * grad_head_stride
    out = _rows(out_ptr, 0, out_stride, left, BLOCK_M, D, BLOCK_D, False)
    grad = _rows(grad_ptr, 0, grad_stride, left, BLOCK_M, D, BLOCK_D, False)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    position = tl.arange(0, BLOCK_M)
    tl.store(delta_ptr + head * tokens + first + position, delta, mask=position < left)


@triton.jit
def _query_step(
    dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, key, start, length, q_stride, grad_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to a tile's dK and dV. Rows past the end add nothing: their q and dout are 0."""
    q = _rows(q_ptr, start, q_stride, length, BLOCK_M, D, BLOCK_D, not MASKED)
    lse = _numbers(lse_ptr, start, length, BLOCK_M, not MASKED)
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if MASKED:
        query = start + tl.arange(0, BLOCK_M)
        score = tl.where(_seen(query[None, :], key[:, None], length, window, CAUSAL, WINDOWED), score, float("-inf"))
    p = tl.exp2(score * scale_log2 - lse[None, :])
    grad = _rows(grad_ptr, start, grad_stride, length, BLOCK_M, D, BLOCK_D, not MASKED)
    dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
    delta = _numbers(delta_ptr, start, length, BLOCK_M, not MASKED)
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
    k_ptr += begin * k_stride + key_head.to(tl.int64) * k_head_stride
    v_ptr += begin * v_stride + key_head.to(tl.int64) * v_head_stride
    k = _rows(k_ptr, first, k_stride, length, BLOCK_N, D, BLOCK_D, False)
    v = _rows(v_ptr, first, v_stride, length, BLOCK_N, D, BLOCK_D, False)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    low, whole_low, whole_high, high = _query_segments(first, length, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED)
    before = (whole_low - low) // BLOCK_M
    masked = before + tl.cdiv(tl.maximum(0, high - whole_high), BLOCK_M)
    for member in range(GROUP):
        head = (key_head * GROUP + member).to(tl.int64)
        q_head_ptr = q_ptr + begin * q_stride + head * q_head_stride
        grad_head_ptr = grad_ptr + begin * grad_stride + head * grad_head_stride
        row = head * tokens + begin
        for block in range(masked):
            start = tl.where(block < before, low, whole_high - before * BLOCK_M) + block * BLOCK_M
            dk, dv = _query_step(
                dk, dv, k, v, q_head_ptr, grad_head_ptr, lse_ptr + row, delta_ptr + row, key, start, length,
                q_stride, grad_stride, scale_log2, window, D, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, True, PRECISION,
            )  # fmt: skip
        if not WINDOWED:
            for start in range(whole_low, whole_high, BLOCK_M):
                dk, dv = _query_step(
                    dk, dv, k, v, q_head_ptr, grad_head_ptr, lse_ptr + row, delta_ptr + row, key, start, length,
                    q_stride, grad_stride, scale_log2, window, D, BLOCK_D, BLOCK_M, CAUSAL, WINDOWED, False, PRECISION,
                )  # fmt: skip
    offset = begin * dk_stride + key_head.to(tl.int64) * dk_head_stride
    _store_rows(dk_ptr + offset, first, dk_stride, length, dk * scale, BLOCK_N, D, BLOCK_D)
    _store_rows(dv_ptr + offset, first, dk_stride, length, dv, BLOCK_N, D, BLOCK_D)


@triton.jit
def _key_step(
    dq, q, grad, lse, delta, k_ptr, v_ptr, query, start, length, k_stride, v_stride, scale_log2, window,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to a tile's dQ."""
    k = _rows(k_ptr, start, k_stride, length, BLOCK_N, D, BLOCK_D, not MASKED)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        key = start + tl.arange(0, BLOCK_N)
        score = tl.where(_seen(query[:, None], key[None, :], length, window, CAUSAL, WINDOWED), score, float("-inf"))
    p = tl.exp2(score * scale_log2 - lse[:, None])
    v = _rows(v_ptr, start, v_stride, length, BLOCK_N, D, BLOCK_D, not MASKED)
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
    head = tl.program_id(1).to(tl.int64)
    query = first + tl.arange(0, BLOCK_M)
    q_ptr += begin * q_stride + head * q_head_stride
    q = _rows(q_ptr, first, q_stride, length, BLOCK_M, D, BLOCK_D, False)
    grad_ptr += begin * grad_stride + head * grad_head_stride
    grad = _rows(grad_ptr, first, grad_stride, length, BLOCK_M, D, BLOCK_D, False)
    row = head * tokens + begin
    lse = _numbers(lse_ptr + row, first, length, BLOCK_M, False)
    delta = _numbers(delta_ptr + row, first, length, BLOCK_M, False)
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
    dq_ptr += begin * dq_stride + head * dq_head_stride
    _store_rows(dq_ptr, first, dq_stride, length, dq * scale, BLOCK_M, D, BLOCK_D)
