"""KL(π‖π_ref) or KL(π_ref‖π) over the whole vocabulary at every token, without holding [T, V]: for π's gradient.

With s the scores of π's head, p and q the probabilities of π and π_ref:

    KL(π‖π_ref) = Σᵥ pᵥ (log pᵥ − log qᵥ),  ∂kl/∂sᵥ = pᵥ·(log pᵥ − log qᵥ − kl)
    KL(π_ref‖π) = Σᵥ qᵥ (log qᵥ − log pᵥ),  ∂kl/∂sᵥ = pᵥ − qᵥ
Under soft caps the scores are c·tanh(logits / c) / τ, each head with its own c and τ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.logprob.chunks import cast_like, product, row_chunks, statistics_dtype


class ChunkedDivergence(torch.autograd.Function):
    """kl_T, differentiable with respect to the first three inputs; the backward computes the scores again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        reference_TH: Tensor,
        reference_VH: Tensor,
        reference_bias_V: Tensor | None,
        temperatures: tuple[float, float],
        softcaps: tuple[float | None, float | None],
        rows: int,
        forward: bool,
    ) -> Tensor:
        kl_T = hidden_TH.new_empty(len(hidden_TH), dtype=statistics_dtype(hidden_TH))
        heads = (hidden_TH, weight_VH, bias_V, reference_TH, reference_VH, reference_bias_V)
        for chunk in row_chunks(len(hidden_TH), rows):
            logp_TV, logq_TV, _ = _chunk(chunk, heads, temperatures, softcaps)
            from_TV, to_TV = (logq_TV, logp_TV) if forward else (logp_TV, logq_TV)
            kl_T[chunk] = torch.linalg.vecdot(from_TV.exp(), from_TV - to_TV)
        ctx.save_for_backward(kl_T, *heads)
        ctx.temperatures, ctx.softcaps, ctx.rows, ctx.forward = temperatures, softcaps, rows, forward
        return kl_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        kl_T, *heads = ctx.saved_tensors
        hidden_TH, weight_VH, bias_V = heads[:3]
        needs = ctx.needs_input_grad
        exact = kl_T.dtype
        grad_TH = torch.zeros_like(hidden_TH, dtype=exact) if needs[0] else None
        grad_VH = torch.zeros_like(weight_VH, dtype=exact) if needs[1] else None
        grad_V = weight_VH.new_zeros(len(weight_VH), dtype=exact) if needs[2] else None
        for chunk in row_chunks(len(hidden_TH), ctx.rows):
            logp_TV, logq_TV, slope_TV = _chunk(chunk, tuple(heads), ctx.temperatures, ctx.softcaps)
            p_TV = logp_TV.exp()
            if ctx.forward:
                d_TV = p_TV.sub_(logq_TV.exp_())
            else:
                d_TV = logp_TV.sub_(logq_TV).sub_(kl_T[chunk, None]).mul_(p_TV)
            d_TV.mul_(grad_T[chunk, None] / ctx.temperatures[0])
            if slope_TV is not None:
                d_TV.mul_(slope_TV)
            if grad_V is not None:
                grad_V += d_TV.sum(0)
            d_TV = d_TV.to(hidden_TH.dtype)
            if grad_TH is not None:
                product(d_TV, weight_VH, grad_TH[chunk])
            if grad_VH is not None:
                product(d_TV.t(), hidden_TH[chunk], grad_VH, add=True)
        return *cast_like((grad_TH, grad_VH, grad_V), (hidden_TH, weight_VH, bias_V)), *(None,) * 7


def _chunk(
    chunk: slice,
    heads: tuple[Any, ...],
    temperatures: tuple[float, float],
    softcaps: tuple[float | None, float | None],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """log π, log π_ref, and 1 − tanh² of π's logits under its soft cap, of a chunk of rows."""
    logp_TV, slope_TV = _log_softmax(chunk, temperatures[0], softcaps[0], *heads[:3])
    logq_TV, _ = _log_softmax(chunk, temperatures[1], softcaps[1], *heads[3:])
    return logp_TV, logq_TV, slope_TV


def _log_softmax(
    chunk: slice,
    temperature: float,
    softcap: float | None,
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    rows_TH = hidden_TH[chunk]
    scores_TV = rows_TH.new_empty(len(rows_TH), len(weight_VH), dtype=statistics_dtype(hidden_TH))
    product(rows_TH, weight_VH.t(), scores_TV)
    if bias_V is not None:
        scores_TV += bias_V
    slope_TV: Tensor | None = None
    if softcap:
        scores_TV.div_(softcap).tanh_()
        slope_TV = 1 - scores_TV.square()
        scores_TV.mul_(softcap)
        if bias_V is not None:
            scores_TV.masked_fill_(bias_V.isneginf(), -torch.inf)
    if temperature != 1.0:
        scores_TV.div_(temperature)
    torch._log_softmax(scores_TV, 1, False, out=scores_TV)
    return scores_TV, slope_TV
