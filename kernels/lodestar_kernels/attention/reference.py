"""Attention over packed sequences in plain torch: a dense oracle, and the path a CPU runs.

out = softmax(scale · Q Kᵀ + mask) V within each sequence. Short causal sequences run as batched matrix products over
groups of similar length (their scores are kept for the backward); longer ones run as torch's fused attention, one
sequence at a time, which needs no mask and no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.attention.layout import GROUPED_LENGTH, PackedLayout, PaddedGroup, PaddedRows

WINDOW_BLOCK = 256


def visible(queries: int, keys: int, causal: bool, window: int | None, device: torch.device | str) -> Tensor:
    """Which keys each query sees, bool [queries, keys]; the last query stands at the last key.

    A window of w lets position i see j with i − w < j, and j < i + w when attention is not causal.
    """
    query_Q1 = torch.arange(keys - queries, keys, device=device)[:, None]
    key_S = torch.arange(keys, device=device)
    seen_QS = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        seen_QS &= key_S <= query_Q1
    if window is not None:
        seen_QS &= (query_Q1 - key_S).abs() < window
    return seen_QS


def dense_attention(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    lengths: tuple[int, ...],
    *,
    causal: bool,
    scale: float,
    window: int | None,
) -> Tensor:
    """The oracle: every score of every sequence, in the dtype of the inputs."""
    group = q_TND.shape[1] // k_TMD.shape[1]
    outputs = []
    for q_SND, k_SMD, v_SMD in zip(*_sequences(lengths, q_TND, k_TMD, v_TMD), strict=True):
        k_SND, v_SND = (x.repeat_interleave(group, dim=1) for x in (k_SMD, v_SMD))
        scores_NSS = torch.einsum("qnd,knd->nqk", q_SND, k_SND) * scale
        seen_SS = visible(len(q_SND), len(q_SND), causal, window, q_TND.device)
        weights_NSS = scores_NSS.masked_fill(~seen_SS, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("nqk,knd->qnd", weights_NSS, v_SND))
    return torch.cat(outputs) if outputs else torch.zeros_like(q_TND)


def packed_attention(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    layout: PackedLayout,
    *,
    causal: bool,
    scale: float,
    window: int | None,
    per_sequence: bool,
) -> Tensor:
    """By groups where that is faster (a CPU), by torch's packed FlashAttention-2 (a GPU), else by sequence.

    `per_sequence` computes each sequence alone.
    """
    if takes_varlen(q_TND) and not per_sequence and layout.tokens:
        return _varlen_attention(q_TND, k_TMD, v_TMD, layout, causal, scale, window)
    grouped = causal and not per_sequence and not q_TND.is_cuda and q_TND.dtype in (torch.float32, torch.float64)
    limit = GROUPED_LENGTH if grouped else 0
    if layout.tokens == 0:
        return q_TND + 0 * (k_TMD.sum() + v_TMD.sum())  # empty, with empty gradients
    long = [
        (start, _sequence_attention(q_SND, k_SMD, v_SMD, causal, scale, window))
        for start, q_SND, k_SMD, v_SMD in zip(
            layout.starts, *_sequences(layout.lengths, q_TND, k_TMD, v_TMD), strict=True
        )
        if len(q_SND) > limit
    ]
    long_tokens = sum(len(out_SND) for _, out_SND in long)
    if long_tokens == layout.tokens:
        return torch.cat([out_SND for _, out_SND in long])
    short_TND: Tensor = GroupedAttention.apply(q_TND, k_TMD, v_TMD, layout, scale, window)  # type: ignore[no-untyped-call]
    if not long:
        return short_TND
    rows = torch.cat([torch.arange(start, start + len(out_SND)) for start, out_SND in long])
    return short_TND.index_copy(0, rows, torch.cat([out_SND for _, out_SND in long]))


def takes_varlen(q_TND: Tensor) -> bool:
    """Whether torch has FlashAttention-2 over packed sequences (torch ≥ 2.11) for these queries."""
    return (
        q_TND.is_cuda
        and q_TND.dtype in (torch.float16, torch.bfloat16)
        and q_TND.shape[2] % 8 == 0
        and q_TND.shape[2] <= 256
        and _varlen_attn() is not None
    )


@lru_cache(maxsize=1)
def _varlen_attn() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    options = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= options.keys() else None


def _varlen_attention(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PackedLayout, causal: bool, scale: float, window: int | None
) -> Tensor:
    """torch's kernel, whose window counts the keys beside a query's own."""
    varlen_attn = _varlen_attn()
    assert varlen_attn is not None
    beside = -1 if window is None else window - 1
    boundaries, longest = layout.cu_seqlens, layout.max_seqlen
    out_TND: Tensor = varlen_attn(
        q_TND, k_TMD, v_TMD, boundaries, boundaries, longest, longest,
        scale=scale, window_size=(beside, 0 if causal else beside), enable_gqa=q_TND.shape[1] != k_TMD.shape[1],
    )  # fmt: skip
    return out_TND


def _sequences(lengths: Sequence[int], *packed: Tensor) -> list[tuple[Tensor, ...]]:
    """Each packed tensor as a tuple of its sequences."""
    return [torch.split(x, list(lengths)) for x in packed]


def _sequence_attention(
    q_SND: Tensor, k_SMD: Tensor, v_SMD: Tensor, causal: bool, scale: float, window: int | None
) -> Tensor:
    """One sequence through torch's fused attention, in blocks of queries when a window cuts the keys."""
    length = len(q_SND)
    q_1NSD, k_1MSD, v_1MSD = (x.transpose(0, 1)[None] for x in (q_SND, k_SMD, v_SMD))
    gqa = q_SND.shape[1] != k_SMD.shape[1]
    if window is None or window >= length:
        out_1NSD = F.scaled_dot_product_attention(q_1NSD, k_1MSD, v_1MSD, is_causal=causal, scale=scale, enable_gqa=gqa)
        return out_1NSD[0].transpose(0, 1)
    blocks = []
    for start in range(0, length, WINDOW_BLOCK):
        end = min(start + WINDOW_BLOCK, length)
        first, last = max(0, start - window + 1), end if causal else min(length, end + window - 1)
        query_Q1 = torch.arange(start, end, device=q_SND.device)[:, None]
        key_S = torch.arange(first, last, device=q_SND.device)
        seen_SS = (query_Q1 - key_S).abs() < window
        if causal:
            seen_SS &= key_S <= query_Q1
        keys = slice(first, last)
        blocks.append(
            F.scaled_dot_product_attention(
                q_1NSD[:, :, start:end], k_1MSD[:, :, keys], v_1MSD[:, :, keys], seen_SS, scale=scale, enable_gqa=gqa
            )
        )
    return torch.cat(blocks, dim=2)[0].transpose(0, 1)


@lru_cache(maxsize=64)
def causal_bias(length: int, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and −inf elsewhere, [1, group · length, length]."""
    bias_SS = torch.zeros(length, length, dtype=dtype)
    bias_SS.masked_fill_(~visible(length, length, True, window, "cpu"), float("-inf"))
    return bias_SS.repeat(group, 1)[None]


class GroupedAttention(torch.autograd.Function):
    """Causal attention of a layout's short sequences by batched matrix products; rows of long ones come back as 0.

    Rows of 16 to 128 numbers are dear to move, so each tensor is padded and packed once for all groups.
    """

    @staticmethod
    def forward(
        ctx: Any, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PackedLayout, scale: float, window: int | None
    ) -> Tensor:
        query_heads, key_heads = q_TND.shape[1], k_TMD.shape[1]
        padded = layout.groups(query_heads, key_heads)
        q_PD, k_PD, v_PD = _pad(q_TND, padded.query), _pad(k_TMD, padded.key), _pad(v_TMD, padded.key)
        out_PD = torch.empty_like(q_PD)
        weights = []
        queries = _by_group(padded.groups, query_heads, key_heads, q_PD, out_PD)
        keys = _by_group(padded.groups, key_heads, key_heads, k_PD, v_PD)
        for group, (q, out), (k, v) in zip(padded.groups, queries, keys, strict=True):
            bias = causal_bias(group.length, query_heads // key_heads, window, q.dtype)
            p = torch.baddbmm(bias, q, k.mT, alpha=scale)
            torch._softmax(p, 2, False, out=p)
            torch.bmm(p, v, out=out)
            weights.append(p)
        ctx.save_for_backward(q_PD, k_PD, v_PD, *weights)
        ctx.padded, ctx.scale, ctx.shapes = padded, scale, (q_TND.shape, k_TMD.shape)
        return _pack(out_PD, padded.query, q_TND.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TND: Tensor) -> tuple[Tensor | None, ...]:
        q_PD, k_PD, v_PD, *weights = ctx.saved_tensors
        padded, (q_shape, k_shape) = ctx.padded, ctx.shapes
        g_PD = _pad(grad_TND, padded.query).index_fill_(0, padded.query.padding, 0)
        grad_q_PD, grad_k_PD, grad_v_PD = (torch.empty_like(x_PD) for x_PD in (q_PD, k_PD, v_PD))
        queries = _by_group(padded.groups, q_shape[1], k_shape[1], q_PD, g_PD, grad_q_PD)
        keys = _by_group(padded.groups, k_shape[1], k_shape[1], k_PD, v_PD, grad_k_PD, grad_v_PD)
        for (q, g, grad_q), (k, v, grad_k, grad_v), p in zip(queries, keys, weights, strict=True):
            torch.bmm(p.mT, g, out=grad_v)
            ds = torch._softmax_backward_data(torch.bmm(g, v.mT), p, 2, p.dtype)
            torch.baddbmm(grad_q, ds, k, beta=0, alpha=ctx.scale, out=grad_q)
            torch.baddbmm(grad_k, ds.mT, q, beta=0, alpha=ctx.scale, out=grad_k)
        grad_q_TND = _pack(grad_q_PD, padded.query, q_shape)
        grad_k_TMD, grad_v_TMD = (_pack(grad_PD, padded.key, k_shape) for grad_PD in (grad_k_PD, grad_v_PD))
        return grad_q_TND, grad_k_TMD, grad_v_TMD, None, None, None


def _by_group(groups: Sequence[PaddedGroup], heads: int, key_heads: int, *tensors_PD: Tensor) -> Iterator[list[Tensor]]:
    """Per group, its part of each padded tensor of ``heads`` heads, as [sequences · M, heads / M · length, D]."""
    start = 0
    for group in groups:
        end = start + group.sequences * heads * group.length
        yield [x_PD[start:end].view(group.sequences * key_heads, -1, x_PD.shape[1]) for x_PD in tensors_PD]
        start = end


def _pad(x_THD: Tensor, rows: PaddedRows) -> Tensor:
    return x_THD.reshape(-1, x_THD.shape[-1]).index_select(0, rows.source)


def _pack(x_PD: Tensor, rows: PaddedRows, shape: torch.Size) -> Tensor:
    """The padded tensor's real rows in their places; 0 elsewhere."""
    if len(rows.packed) == shape[0] * shape[1]:
        return x_PD.index_select(0, rows.real).view(shape)
    packed = x_PD.new_zeros(shape)
    packed.view(-1, shape[-1]).index_copy_(0, rows.packed, x_PD.index_select(0, rows.real))
    return packed
