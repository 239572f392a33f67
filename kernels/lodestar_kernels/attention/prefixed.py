"""Attention where several completions go on from one prompt whose rows exist once.

A batch of T rows holds groups [prompt, completion 1 … n]; the whole sequences would have U tokens. Two ways, the same
numbers to rounding:

    once      a CPU's: the prompt attends to itself once, and all completions' queries read the prompt's keys in one
              product; a completion's scores over prompt and itself go through one softmax, and are kept for the
              backward. (Hydragen, Juravsky et al. 2024, merges two softmaxes of the same two products.)
    unfolded  everywhere else (small groups, windows, caps, sinks, long sequences, GPUs): queries, keys and values are
              laid out as the U tokens of whole sequences, attended to by any of our attentions, and the T outputs taken
              back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.attention.layout import PackedLayout
from lodestar_kernels.attention.op import attention
from lodestar_kernels.attention.reference import causal_bias

ONCE_LENGTH = 512
"""Tokens of the longest whole sequence up to which scores are kept; longer ones go through fused attention."""
ONCE_TOKENS = 200
"""Whole sequences' tokens of an average group from which ``once`` is worth its products per group."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixGroup:
    """One prompt and its completions, right-padded to the longest of them."""

    start: int
    """Row of the prompt's first token."""
    prompt: int
    """Tokens of the prompt, ≥ 1."""
    completions: int
    length: int
    """Tokens of the longest completion."""
    rows: Tensor
    """int64 [completions · length]: row of every padded place; a padding place repeats some row of the group."""
    padding: Tensor
    """int64: padded places that stand for nothing."""
    real: Tensor
    """int64: the others."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixLayout:
    """Where prompts and completions lie: ``PrefixLayout.of([(3, (2, 4)), (5, (1,))])`` has T = 15 and U = 18."""

    groups: tuple[PrefixGroup, ...]
    whole: PackedLayout
    """The whole sequences, U tokens, group by group."""
    source_U: Tensor
    """int64 [U]: row of each token of the whole sequences."""
    back_T: Tensor
    """int64 [T]: a place among the U of each row."""

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.back_T)

    @staticmethod
    def of(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu") -> PrefixLayout:
        """Layout of groups of (prompt's tokens, each completion's tokens), one after another."""
        made, source, lengths, start = [], [], [], 0
        for prompt, completions in groups:
            if prompt < 1 or not completions or min(completions) < 1:
                raise ValueError(f"a group needs a prompt and completions, got {prompt} and {list(completions)}")
            longest = max(completions)
            counts = torch.tensor(completions)
            firsts = start + prompt + counts.cumsum(0) - counts
            place_S = torch.arange(longest)
            real_BS = place_S < counts[:, None]
            rows_BS = torch.where(real_BS, firsts[:, None] + place_S, start)
            flat = real_BS.flatten()
            made.append(
                PrefixGroup(
                    start, prompt, len(completions), longest, rows_BS.flatten().to(device),
                    (~flat).nonzero()[:, 0].to(device), flat.nonzero()[:, 0].to(device),
                )
            )  # fmt: skip
            for first, length in zip(firsts.tolist(), completions, strict=True):
                source += [torch.arange(start, start + prompt), torch.arange(first, first + length)]
                lengths.append(prompt + length)
            start += prompt + sum(completions)
        source_U = torch.cat(source)
        back_T = torch.empty(start, dtype=torch.int64)
        back_T[source_U] = torch.arange(len(source_U))
        whole = PackedLayout.from_lengths(lengths, device)
        return PrefixLayout(tuple(made), whole, source_U.to(device), back_T.to(device))


def prefixed_attention(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    layout: PrefixLayout,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_N: Tensor | None = None,
    backend: Literal["triton", "torch"] | None = None,
) -> Tensor:
    """Causal attention within each whole sequence, for the T rows; returns [T, N, D]. Options as :func:`attention`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    if len(q_TND) != layout.tokens:
        raise ValueError(f"q_TND has {len(q_TND)} rows, and the layout {layout.tokens}")
    longest = layout.whole.max_seqlen
    sees_all = window is None or window >= longest
    plain = softcap is None and sinks_N is None and backend != "triton"
    fits = longest <= ONCE_LENGTH and len(layout.source_U) >= ONCE_TOKENS * len(layout.groups)
    if plain and sees_all and fits and not q_TND.is_cuda and q_TND.dtype in _EXACT:
        scale = q_TND.shape[2] ** -0.5 if scale is None else scale
        once_TND: Tensor = PrefixedAttention.apply(q_TND, k_TMD, v_TMD, layout, scale)  # type: ignore[no-untyped-call]
        return once_TND
    q_UND, k_UMD, v_UMD = (x.index_select(0, layout.source_U) for x in (q_TND, k_TMD, v_TMD))
    out_UND = attention(
        q_UND, k_UMD, v_UMD, layout=layout.whole, scale=scale, window=window, softcap=softcap, sinks_N=sinks_N,
        backend=backend,
    )  # fmt: skip
    return out_UND.index_select(0, layout.back_T)


_EXACT = (torch.float32, torch.float64)


class _Heads:
    """Between rows [S, N, D] and [M · sequences, N/M · length, D], the query heads of a key head together."""

    def __init__(self, sequences: int, length: int, key_heads: int, dim: int) -> None:
        self._shape = (sequences, length, key_heads, -1, dim)
        self._flat = (key_heads * sequences, -1, dim)

    def gather(self, x_SND: Tensor) -> Tensor:
        """Rows by head."""
        return x_SND.reshape(self._shape).permute(2, 0, 3, 1, 4).reshape(self._flat)

    def scatter(self, x: Tensor) -> Tensor:
        """Back again, [S, N, D]."""
        sequences, length, key_heads, _, dim = self._shape
        heads = x.numel() // (sequences * length * dim)
        return x.view(key_heads, sequences, -1, length, dim).permute(1, 3, 0, 2, 4).reshape(-1, heads, dim)


class PrefixedAttention(torch.autograd.Function):
    """The ``once`` way: every group in two blocks, the prompt's own and the completions' over prompt and themselves."""

    @staticmethod
    def forward(ctx: Any, q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PrefixLayout, scale: float) -> Tensor:
        out_TND = torch.empty_like(q_TND)
        weights = []
        repeats = q_TND.shape[1] // k_TMD.shape[1]
        for group in layout.groups:
            prompt, rows = slice(group.start, group.start + group.prompt), group.rows
            heads, own = _heads(group, k_TMD)
            q_P, k_P, v_P = heads.gather(q_TND[prompt]), k_TMD[prompt].transpose(0, 1), v_TMD[prompt].transpose(0, 1)
            p_P = torch.baddbmm(causal_bias(group.prompt, repeats, None, q_P.dtype), q_P, k_P.mT, alpha=scale)
            torch._softmax(p_P, 2, False, out=p_P)
            out_TND[prompt] = heads.scatter(torch.bmm(p_P, v_P))
            q_C, k_C, v_C = (own.gather(x[rows]) for x in (q_TND, k_TMD, v_TMD))
            p_C = q_C.new_empty(*q_C.shape[:2], group.prompt + group.length)
            across = p_C.view(len(k_P), -1, p_C.shape[2])[..., : group.prompt]
            across.copy_(torch.bmm(q_C.view(len(k_P), -1, q_C.shape[2]), k_P.mT).mul_(scale))
            bias = causal_bias(group.length, repeats, None, q_C.dtype)
            p_C[..., group.prompt :] = torch.baddbmm(bias, q_C, k_C.mT, alpha=scale)
            torch._softmax(p_C, 2, False, out=p_C)
            out_C = torch.bmm(across, v_P).view(q_C.shape).baddbmm_(p_C[..., group.prompt :], v_C)
            out_TND.index_copy_(0, rows[group.real], own.scatter(out_C)[group.real])
            weights += [p_P, p_C]
        ctx.save_for_backward(q_TND, k_TMD, v_TMD, *weights)
        ctx.layout, ctx.scale = layout, scale
        return out_TND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TND: Tensor) -> tuple[Tensor | None, ...]:
        q_TND, k_TMD, v_TMD, *weights = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in (q_TND, k_TMD, v_TMD))
        for group, p_P, p_C in zip(ctx.layout.groups, weights[::2], weights[1::2], strict=True):
            _group_backward(group, p_P, p_C, grad_TND, (q_TND, k_TMD, v_TMD), grads, ctx.scale)
        return *grads, None, None


def _group_backward(
    group: PrefixGroup,
    p_P: Tensor,
    p_C: Tensor,
    grad_TND: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, ...],
    scale: float,
) -> None:
    """Write the group's rows of the gradients of queries, keys and values."""
    q_TND, k_TMD, v_TMD = inputs
    prompt, rows = slice(group.start, group.start + group.prompt), group.rows
    heads, own = _heads(group, k_TMD)
    q_P, g_P = heads.gather(q_TND[prompt]), heads.gather(grad_TND[prompt])
    k_P, v_P = k_TMD[prompt].transpose(0, 1), v_TMD[prompt].transpose(0, 1)
    q_C, k_C, v_C = (own.gather(x[rows]) for x in inputs)
    g_C = own.gather(grad_TND[rows].index_fill_(0, group.padding, 0))
    key_heads, dim = len(k_P), q_C.shape[2]
    ds_P = torch._softmax_backward_data(torch.bmm(g_P, v_P.mT), p_P, 2, p_P.dtype)
    dp_C = torch.empty_like(p_C)
    flat_g, flat_q = g_C.view(key_heads, -1, dim), q_C.view(key_heads, -1, dim)
    dp_C.view(key_heads, -1, dp_C.shape[2])[..., : group.prompt] = torch.bmm(flat_g, v_P.mT)
    dp_C[..., group.prompt :] = torch.bmm(g_C, v_C.mT)
    ds_C = torch._softmax_backward_data(dp_C, p_C, 2, p_C.dtype)
    across_p, across_s = (x.view(key_heads, -1, x.shape[2])[..., : group.prompt] for x in (p_C, ds_C))
    own_p, own_s = p_C[..., group.prompt :], ds_C[..., group.prompt :]
    grad_q, grad_k, grad_v = grads
    grad_q[prompt] = heads.scatter(torch.bmm(ds_P, k_P).mul_(scale))
    grad_k[prompt] = torch.bmm(ds_P.mT, q_P).baddbmm_(across_s.mT, flat_q).mul_(scale).transpose(0, 1)
    grad_v[prompt] = torch.bmm(p_P.mT, g_P).baddbmm_(across_p.mT, flat_g).transpose(0, 1)
    parts = (
        torch.bmm(across_s, k_P).view(q_C.shape).baddbmm_(own_s, k_C).mul_(scale),
        torch.bmm(own_s.mT, q_C).mul_(scale),
        torch.bmm(own_p.mT, g_C),
    )
    for grad, part in zip(grads, parts, strict=True):
        grad.index_copy_(0, rows[group.real], own.scatter(part)[group.real])


def _heads(group: PrefixGroup, k_TMD: Tensor) -> tuple[_Heads, _Heads]:
    _, key_heads, dim = k_TMD.shape
    return _Heads(1, group.prompt, key_heads, dim), _Heads(group.completions, group.length, key_heads, dim)
