"""A loss over tokens whose gradient is taken while a chunk's probabilities exist: three matrix products, not four.

When a loss is a sum over tokens, its derivative by a token's log-prob and entropy is known as soon as these are. The
forward therefore goes on, chunk by chunk, to the gradients of hidden states and head, and the backward only hands them
out. Nothing of the size [T, V] outlives its chunk, and no score is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.logprob.chunks import HeadGradients, Scorer, cast_like, normalise_, row_chunks

TokenLoss = Callable[[slice, Tensor, Tensor | None], Tensor]
"""(tokens of a chunk, their log-probs, their entropies if asked for) to a scalar: the chunk's share of the loss."""


class ChunkedTokenLoss(torch.autograd.Function):
    """Loss, logprob and entropy rows (empty unless asked for); only the loss is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        inverse_temperature_T: Tensor | None,
        loss: TokenLoss,
        rows: int,
        want_entropy: bool,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scorer = Scorer(hidden_TH, weight_VH, bias_V, inverse_temperature_T, softcap)
        tokens = hidden_TH.shape[0]
        logprobs_T, one_hot_T, row_T = (hidden_TH.new_empty(tokens, dtype=scorer.dtype) for _ in range(3))
        entropy_T, grad_entropy_T = (
            hidden_TH.new_empty(tokens if want_entropy else 0, dtype=scorer.dtype) for _ in range(2)
        )
        gradients = HeadGradients(
            scorer, targets_T, ctx.needs_input_grad[:3], one_hot_T, row_T, entropy_T,
            grad_entropy_T if want_entropy else None,
        )  # fmt: skip
        total = hidden_TH.new_zeros((), dtype=scorer.dtype)
        buffer_TV = scorer.buffer(min(rows, tokens))
        for chunk in row_chunks(tokens, rows):
            logp_TV = scorer(chunk, buffer_TV)
            slope_TV = scorer.slope(chunk, logp_TV)
            logprobs_T[chunk], _, entropy = normalise_(logp_TV, targets_T[chunk], want_entropy)
            if entropy is not None:
                entropy_T[chunk] = entropy
            part, one_hot_T[chunk], grad_entropy = _derivatives(loss, chunk, logprobs_T[chunk], entropy)
            if grad_entropy is not None:
                grad_entropy_T[chunk] = grad_entropy
            row_T[chunk] = -one_hot_T[chunk]
            total += part
            if any(ctx.needs_input_grad[:3]):
                gradients.add(chunk, logp_TV.exp_(), slope_TV)
        ctx.save_for_backward(*cast_like(gradients.finish(), (hidden_TH, weight_VH, bias_V)))
        ctx.mark_non_differentiable(logprobs_T, entropy_T)
        return total, logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if not (grad_loss.device.type == "cpu" and float(grad_loss) == 1.0):
            gradients = [None if g is None else g * grad_loss.to(g.dtype) for g in gradients]
        return *gradients, *(None,) * 6


def _derivatives(
    loss: TokenLoss, chunk: slice, logprobs_C: Tensor, entropy_C: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The chunk's loss, and its derivatives by each log-prob and entropy."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (logprobs_C, entropy_C) if x is not None]
        part = loss(chunk, leaves[0], leaves[1] if entropy_C is not None else None)
        if not part.requires_grad:
            zeros = [torch.zeros_like(leaf) for leaf in leaves]
            return part.detach(), zeros[0], zeros[1] if entropy_C is not None else None
        first, *rest = torch.autograd.grad(part, leaves, allow_unused=True, materialize_grads=True)
    return part.detach(), first, rest[0] if rest else None
