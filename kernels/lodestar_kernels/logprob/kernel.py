# mypy: ignore-errors
"""Triton kernels of the log-prob operation: statistics of rows of scores, and the gradient of the scores.

A slice of scores is read once per pass. The running statistics of a row are its maximum m, l = Σ exp(s − m),
a = Σ exp(s − m)·(s − m) and the target's score; slices of the vocabulary merge into them in order, so neither the
whole row of logits nor the order of chunks across rows matters. Then logprob = (s_y − m) − log l and
entropy = log l − a / l, free of the cancellation that a large log-sum-exp would bring.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _capped(score, softcap):
    """softcap · tanh(score / softcap), by the exponential that overflows nowhere; −inf, no token at all, stays."""
    decay = tl.exp(-2.0 * tl.abs(score) / softcap)
    cap = softcap * (1.0 - decay) / (1.0 + decay)
    return tl.where(score == float("-inf"), score, tl.where(score < 0.0, -cap, cap))


@triton.jit
def accumulate_statistics(
    logits_ptr,
    bias_ptr,
    inverse_temperature_ptr,
    targets_ptr,
    max_ptr,
    sum_ptr,
    moment_ptr,
    target_score_ptr,
    row_stride,
    first,
    width,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row: fold logits of tokens first … first + width − 1 into the row's running statistics."""
    row = tl.program_id(0).to(tl.int64)
    scale = 1.0
    if HAS_TEMPERATURE:
        scale = tl.load(inverse_temperature_ptr + row)
    offsets = tl.arange(0, BLOCK_V)
    maximum = tl.load(max_ptr + row)
    lane_sum = tl.zeros([BLOCK_V], tl.float32)
    lane_moment = tl.zeros([BLOCK_V], tl.float32)
    start_max = maximum
    for start in range(0, width, BLOCK_V):
        inside = start + offsets < width
        score = tl.load(logits_ptr + row * row_stride + start + offsets, mask=inside, other=float("-inf")).to(
            tl.float32
        )
        if HAS_BIAS:
            score += tl.load(bias_ptr + first + start + offsets, mask=inside, other=0.0).to(tl.float32)
        if HAS_SOFTCAP:
            score = _capped(score, softcap)
        score *= scale
        new_max = tl.maximum(maximum, tl.max(score, 0))
        centre = tl.where(new_max == float("-inf"), 0.0, new_max)
        shift = tl.where(maximum == float("-inf"), 0.0, maximum - centre)
        decay = tl.exp(shift)
        power = tl.exp(score - centre)
        if ENTROPY:
            distance = tl.where(score == float("-inf"), 0.0, score - centre)
            lane_moment = decay * (lane_moment + shift * lane_sum) + power * distance
        lane_sum = decay * lane_sum + power
        maximum = new_max
    # What came before this slice is folded in last, so that the loop carries no scalar chain through memory.
    centre = tl.where(maximum == float("-inf"), 0.0, maximum)
    shift = tl.where(start_max == float("-inf"), 0.0, start_max - centre)
    decay = tl.exp(shift)
    before = tl.load(sum_ptr + row)
    tl.store(max_ptr + row, maximum)
    tl.store(sum_ptr + row, decay * before + tl.sum(lane_sum, 0))
    if ENTROPY:
        moment = decay * (tl.load(moment_ptr + row) + shift * before) + tl.sum(lane_moment, 0)
        tl.store(moment_ptr + row, moment)
    target = tl.load(targets_ptr + row) - first
    if (target >= 0) & (target < width):
        score = tl.load(logits_ptr + row * row_stride + target).to(tl.float32)
        if HAS_BIAS:
            score += tl.load(bias_ptr + first + target).to(tl.float32)
        if HAS_SOFTCAP:
            score = _capped(score, softcap)
        tl.store(target_score_ptr + row, score * scale)


@triton.jit
def score_gradient(
    logits_ptr,
    bias_ptr,
    inverse_temperature_ptr,
    targets_ptr,
    max_ptr,
    log_sum_ptr,
    entropy_ptr,
    grad_logprob_ptr,
    grad_entropy_ptr,
    grad_lse_ptr,
    out_ptr,
    row_stride,
    out_stride,
    first,
    width,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    GRAD_LOGPROB: tl.constexpr,
    GRAD_ENTROPY: tl.constexpr,
    GRAD_LSE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row and one block of its slice: the gradient with respect to the logits, upstream gradients folded in.

    (g·1[v = y] + p·(l − g − h·(log p + entropy))) / τ, times 1 − tanh² under a soft cap. `out` may be `logits` itself
    when their dtypes agree.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = column < width
    scale = 1.0
    if HAS_TEMPERATURE:
        scale = tl.load(inverse_temperature_ptr + row)
    score = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    if HAS_BIAS:
        score += tl.load(bias_ptr + first + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        score = _capped(score, softcap)
    logp = (score * scale - tl.load(max_ptr + row)) - tl.load(log_sum_ptr + row)
    p = tl.exp(logp)
    grad = tl.zeros([BLOCK_V], tl.float32)
    if GRAD_LSE:
        grad += tl.load(grad_lse_ptr + row) * p
    if GRAD_ENTROPY:
        surprise = tl.where(p > 0.0, logp + tl.load(entropy_ptr + row), 0.0)
        grad -= tl.load(grad_entropy_ptr + row) * p * surprise
    if GRAD_LOGPROB:
        target = tl.load(targets_ptr + row) - first
        grad += tl.load(grad_logprob_ptr + row) * (tl.where(column == target, 1.0, 0.0) - p)
    if HAS_SOFTCAP:
        share = tl.maximum(score / softcap, -1.0)
        grad *= 1.0 - share * share
    out = out_ptr + row * out_stride + column
    tl.store(out, (grad * scale).to(out_ptr.dtype.element_ty), mask=inside)
