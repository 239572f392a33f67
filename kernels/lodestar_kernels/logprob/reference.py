"""Log-probabilities of given tokens in plain torch: a dense oracle, and the chunked path a CPU runs.

With scores s = (X Wᵀ + b) / τ, row by row:  lse = log Σᵥ exp sᵥ,  logprob = s_y − lse,  entropy = −Σᵥ pᵥ log pᵥ.
Under a soft cap c (Gemma 2, Gemma Team 2024, section 2) the logits z = X Wᵀ + b become c·tanh(z / c) first.
Backward, with upstream gradients g (log-prob), h (entropy), l (lse):

    ∂L/∂sᵥ = g·1[v = y] + pᵥ·(l − g − h·(log pᵥ + entropy))

The one-hot term never touches a [T, V] tensor: its share of dX is g·W_y and its share of dW is a row added at y. Under
a soft cap ∂s/∂z = (1 − tanh²(z / c)) / τ multiplies the whole sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.logprob.chunks import (
    HeadGradients,
    Scorer,
    cast_like,
    entropy_gradient,
    normalise_,
    row_chunks,
    softmax_,
    statistics_dtype,
)


class LogProbOutput(NamedTuple):
    """Per-token results, float32 (float64 for float64 inputs); ignored tokens hold 0 and pass no gradient."""

    logprobs_T: Tensor
    entropy_T: Tensor | None
    lse_T: Tensor | None


def dense_logprobs(
    logits_TV: Tensor, targets_T: Tensor, temperature: float | Tensor = 1.0, softcap: float | None = None
) -> LogProbOutput:
    """The oracle: log-softmax over the whole [T, V] in the dtype of `logits_TV`, differentiable by torch."""
    if softcap:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None].to(logits_TV.dtype)
    scores_TV = logits_TV / temperature
    logp_TV = torch.log_softmax(scores_TV, dim=-1)
    entropy_T = -torch.where(logp_TV.isneginf(), 0.0, logp_TV.exp() * logp_TV).sum(-1)
    logprobs_T = logp_TV.gather(1, targets_T[:, None])[:, 0]
    return LogProbOutput(logprobs_T, entropy_T, torch.logsumexp(scores_TV, -1))


class ChunkedLogProbs(torch.autograd.Function):
    """Log-probabilities from hidden states, `rows` rows of logits at a time.

    The probabilities of the first `kept` chunks stay for the backward, those of the others are computed again: a fourth
    matrix product. Under a soft cap `kept` must be 0: the backward needs the scores. Returns logprob, entropy and lse
    rows; entropy is empty unless asked for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        inverse_temperature_T: Tensor | None,
        rows: int,
        want_entropy: bool,
        kept: int,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scorer = Scorer(hidden_TH, weight_VH, bias_V, inverse_temperature_T, softcap)
        chunks = row_chunks(hidden_TH.shape[0], rows)
        logprobs_T, lse_T = (hidden_TH.new_empty(len(hidden_TH), dtype=scorer.dtype) for _ in range(2))
        entropy_T = hidden_TH.new_empty(len(hidden_TH) if want_entropy else 0, dtype=scorer.dtype)
        probabilities: list[Tensor] = []
        buffer_TV = scorer.buffer(0)
        for chunk in chunks:
            keep, height = len(probabilities) < kept, chunk.stop - chunk.start
            if keep or len(buffer_TV) < height:
                buffer_TV = scorer.buffer(height)
            logp_TV = scorer(chunk, buffer_TV)
            logprobs_T[chunk], lse_T[chunk], entropy = normalise_(logp_TV, targets_T[chunk], want_entropy)
            if entropy is not None:
                entropy_T[chunk] = entropy
            if keep:
                probabilities.append(logp_TV.exp_())
                buffer_TV = scorer.buffer(0)
        ctx.save_for_backward(
            hidden_TH, weight_VH, bias_V, targets_T, inverse_temperature_T, lse_T, entropy_T, *probabilities
        )
        ctx.chunks, ctx.softcap = chunks, softcap
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T, lse_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_T: Tensor | None, grad_entropy_T: Tensor | None, grad_lse_T: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, bias_V = ctx.saved_tensors[:3]
        targets_T, inverse_temperature_T, lse_T, entropy_T = ctx.saved_tensors[3:7]
        probabilities = ctx.saved_tensors[7:]
        scorer = Scorer(hidden_TH, weight_VH, bias_V, inverse_temperature_T, ctx.softcap)
        one_hot_T = grad_logprobs_T if grad_logprobs_T is not None else torch.zeros_like(lse_T)
        row_T = -one_hot_T if grad_lse_T is None else grad_lse_T - one_hot_T
        gradients = HeadGradients(
            scorer, targets_T, ctx.needs_input_grad[:3], one_hot_T, row_T, entropy_T, grad_entropy_T
        )
        again = ctx.chunks[len(probabilities) :]
        for chunk, p_TV in zip(ctx.chunks, probabilities, strict=False):
            gradients.add(chunk, p_TV)
        if again:
            buffer_TV = scorer.buffer(again[0].stop - again[0].start)
            for chunk in again:
                scores_TV = scorer(chunk, buffer_TV)
                slope_TV = scorer.slope(chunk, scores_TV)
                gradients.add(chunk, softmax_(scores_TV), slope_TV)
        return *cast_like(gradients.finish(), (hidden_TH, weight_VH, bias_V)), *(None,) * 6


class ChunkedLogProbsFromLogits(torch.autograd.Function):
    """The same from given logits: the only [T, V] tensors are the caller's logits and their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        targets_T: Tensor,
        inverse_temperature_T: Tensor | None,
        rows: int,
        want_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = statistics_dtype(logits_TV)
        tokens = logits_TV.shape[0]
        logprobs_T, lse_T = (logits_TV.new_empty(tokens, dtype=dtype) for _ in range(2))
        entropy_T = logits_TV.new_empty(tokens if want_entropy else 0, dtype=dtype)
        for chunk in row_chunks(tokens, rows):
            scores_TV = _scaled(logits_TV, inverse_temperature_T, chunk, dtype)
            logprobs_T[chunk], lse_T[chunk], entropy = normalise_(scores_TV, targets_T[chunk], want_entropy)
            if entropy is not None:
                entropy_T[chunk] = entropy
        ctx.save_for_backward(logits_TV, targets_T, inverse_temperature_T, lse_T, entropy_T)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T, lse_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_T: Tensor | None, grad_entropy_T: Tensor | None, grad_lse_T: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits_TV, targets_T, inverse_temperature_T, lse_T, entropy_T = ctx.saved_tensors
        one_hot_T = grad_logprobs_T if grad_logprobs_T is not None else torch.zeros_like(lse_T)
        row_T = -one_hot_T if grad_lse_T is None else grad_lse_T - one_hot_T
        grad_TV = torch.empty_like(logits_TV)
        for chunk in row_chunks(logits_TV.shape[0], ctx.rows):
            p_TV = softmax_(_scaled(logits_TV, inverse_temperature_T, chunk, lse_T.dtype))
            if grad_entropy_T is not None:
                p_TV = entropy_gradient(p_TV, entropy_T[chunk], row_T[chunk], grad_entropy_T[chunk])
            else:
                p_TV.mul_(row_T[chunk, None])
            p_TV.scatter_add_(1, targets_T[chunk, None], one_hot_T[chunk, None])
            if inverse_temperature_T is not None:
                p_TV.mul_(inverse_temperature_T[chunk, None])
            grad_TV[chunk] = p_TV
        return grad_TV, None, None, None, None


def _scaled(logits_TV: Tensor, inverse_temperature_T: Tensor | None, chunk: slice, dtype: torch.dtype) -> Tensor:
    """A fresh copy of a chunk of logits, divided by the temperature."""
    scores_TV = logits_TV[chunk].to(dtype, copy=True)
    return scores_TV if inverse_temperature_T is None else scores_TV.mul_(inverse_temperature_T[chunk, None])
