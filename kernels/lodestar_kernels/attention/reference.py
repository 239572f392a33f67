"""Attention over packed sequences in plain torch: a dense oracle, and the path a CPU runs.

out = softmax(scale · Q Kᵀ + mask) V within each sequence. Short causal sequences run as batched matrix products over
groups of similar length (their scores are kept for the backward); longer ones run as torch's fused attention, one
sequence at a time, which needs no mask and no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
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
def _causal_bias(length: int, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and −inf elsewhere, [1, group · length, length]."""
    bias_SS = torch.zeros(length, length, dtype=dtype)
    bias_SS.masked_fill_(~visible(length, length, True, window, "cpu"), float("-inf"))
    return bias_SS.repeat(group, 1)[None]


class GroupedAttention(torch.autograd.Function):
    """Causal attention of a layout's short sequences by batched matrix products; rows of long ones come back as 0."""

    @staticmethod
    def forward(
        ctx: Any, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PackedLayout, scale: float, window: int | None
    ) -> Tensor:
        q_RD, k_RD, v_RD = (x.reshape(-1, x.shape[-1]) for x in (q_TND, k_TMD, v_TMD))
        groups = layout.groups(q_TND.shape[1], k_TMD.shape[1])
        out_RD = torch.zeros_like(q_RD) if layout.max_seqlen > GROUPED_LENGTH else torch.empty_like(q_RD)
        weights = []
        for group in groups:
            q, k, v = _batched(group, q_RD, k_RD, v_RD, k_TMD.shape[1])
            bias = _causal_bias(group.length, q_TND.shape[1] // k_TMD.shape[1], window, q.dtype)
            p = torch.baddbmm(bias, q, k.mT, alpha=scale)
            torch._softmax(p, 2, False, out=p)
            _scatter(torch.bmm(p, v), group.query, out_RD)
            weights.append(p)
        ctx.save_for_backward(q_TND, k_TMD, v_TMD, *weights)
        ctx.groups, ctx.scale, ctx.complete = groups, scale, layout.max_seqlen <= GROUPED_LENGTH
        return out_RD.view(q_TND.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TND: Tensor) -> tuple[Tensor | None, ...]:
        q_TND, k_TMD, v_TMD, *weights = ctx.saved_tensors
        q_RD, k_RD, v_RD, g_RD = (x.reshape(-1, x.shape[-1]) for x in (q_TND, k_TMD, v_TMD, grad_TND))
        fresh = torch.empty_like if ctx.complete else torch.zeros_like
        grad_q, grad_k, grad_v = fresh(q_RD), fresh(k_RD), fresh(v_RD)
        for group, p in zip(ctx.groups, weights, strict=True):
            q, k, v = _batched(group, q_RD, k_RD, v_RD, k_TMD.shape[1])
            g = torch.zeros_like(q).view(-1, q.shape[-1])
            g.index_copy_(0, group.query.real, g_RD.index_select(0, group.query.packed))
            g = g.view_as(q)
            _scatter(torch.bmm(p.mT, g), group.key, grad_v)
            ds = torch._softmax_backward_data(torch.bmm(g, v.mT), p, 2, p.dtype)
            _scatter(torch.bmm(ds, k).mul_(ctx.scale), group.query, grad_q)
            _scatter(torch.bmm(ds.mT, q).mul_(ctx.scale), group.key, grad_k)
        return grad_q.view_as(q_TND), grad_k.view_as(k_TMD), grad_v.view_as(v_TMD), None, None, None


def _batched(
    group: PaddedGroup, q_RD: Tensor, k_RD: Tensor, v_RD: Tensor, key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B·M, N/M · S, D], keys and values [B·M, S, D] of a group."""
    batch = group.sequences * key_heads
    q = q_RD.index_select(0, group.query.source).view(batch, -1, q_RD.shape[1])
    k, v = (x.index_select(0, group.key.source).view(batch, group.length, x.shape[1]) for x in (k_RD, v_RD))
    return q, k, v


def _scatter(padded: Tensor, rows: PaddedRows, packed_RD: Tensor) -> None:
    """Write a group's real rows to their places in the packed tensor."""
    flat = padded.reshape(-1, packed_RD.shape[1])
    real = flat if len(rows.real) == len(flat) else flat.index_select(0, rows.real)
    packed_RD.index_copy_(0, rows.packed, real)
