"""KL(π‖π_ref) over the whole vocabulary at every token, without holding [T, V]: for π's gradient as a loss.

With s and r the scores of the two heads:  kl = Σᵥ pᵥ (log pᵥ − log qᵥ),  ∂kl/∂sᵥ = pᵥ·(log pᵥ − log qᵥ − kl).
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
        temperature: float,
        rows: int,
    ) -> Tensor:
        kl_T = hidden_TH.new_empty(len(hidden_TH), dtype=statistics_dtype(hidden_TH))
        heads = (hidden_TH, weight_VH, bias_V, reference_TH, reference_VH, reference_bias_V)
        for chunk in row_chunks(len(hidden_TH), rows):
            p_TV, gap_TV = _chunk(chunk, heads, temperature)
            kl_T[chunk] = torch.linalg.vecdot(p_TV, gap_TV)
        ctx.save_for_backward(kl_T, *heads)
        ctx.temperature, ctx.rows = temperature, rows
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
            p_TV, gap_TV = _chunk(chunk, tuple(heads), ctx.temperature)
            d_TV = gap_TV.sub_(kl_T[chunk, None]).mul_(p_TV).mul_(grad_T[chunk, None] / ctx.temperature)
            if grad_V is not None:
                grad_V += d_TV.sum(0)
            d_TV = d_TV.to(hidden_TH.dtype)
            if grad_TH is not None:
                product(d_TV, weight_VH, grad_TH[chunk])
            if grad_VH is not None:
                product(d_TV.t(), hidden_TH[chunk], grad_VH, add=True)
        return *cast_like((grad_TH, grad_VH, grad_V), (hidden_TH, weight_VH, bias_V)), *(None,) * 5


def _chunk(chunk: slice, heads: tuple[Any, ...], temperature: float) -> tuple[Tensor, Tensor]:
    """π's probabilities, and log π − log π_ref, of a chunk of rows."""
    logp_TV, logq_TV = (_log_softmax(chunk, temperature, *head) for head in (heads[:3], heads[3:]))
    return logp_TV.exp(), logp_TV.sub_(logq_TV)


def _log_softmax(
    chunk: slice, temperature: float, hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None
) -> Tensor:
    rows_TH = hidden_TH[chunk]
    scores_TV = rows_TH.new_empty(len(rows_TH), len(weight_VH), dtype=statistics_dtype(hidden_TH))
    product(rows_TH, weight_VH.t(), scores_TV)
    if bias_V is not None:
        scores_TV += bias_V
    if temperature != 1.0:
        scores_TV.div_(temperature)
    torch._log_softmax(scores_TV, 1, False, out=scores_TV)
    return scores_TV
