"""Log-probabilities of given tokens in plain torch: a dense oracle, and the chunked path a CPU runs.

With scores s = (X Wᵀ + b) / τ, row by row:  lse = log Σᵥ exp sᵥ,  logprob = s_y − lse,  entropy = −Σᵥ pᵥ log pᵥ.
Backward, with upstream gradients g (log-prob), h (entropy), l (lse):

    ∂L/∂sᵥ = g·1[v = y] + pᵥ·(l − g − h·(log pᵥ + entropy))

The one-hot term never touches a [T, V] tensor: its share of dX is g·W_y and its share of dW is a row added at y. When
no entropy gradient is asked for, the rest is p scaled by rows, and the scaling moves to the [T, H] side as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_CHUNK_ROWS = 64


class LogProbOutput(NamedTuple):
    """Per-token results, float32 (float64 for float64 inputs); ignored tokens hold 0 and pass no gradient."""

    logprobs_T: Tensor
    entropy_T: Tensor | None
    lse_T: Tensor | None


def dense_logprobs(logits_TV: Tensor, targets_T: Tensor, temperature: float | Tensor = 1.0) -> LogProbOutput:
    """The oracle: log-softmax over the whole [T, V] in the dtype of `logits_TV`, differentiable by torch."""
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None].to(logits_TV.dtype)
    scores_TV = logits_TV / temperature
    logp_TV = torch.log_softmax(scores_TV, dim=-1)
    entropy_T = -torch.where(logp_TV.isneginf(), 0.0, logp_TV.exp() * logp_TV).sum(-1)
    logprobs_T = logp_TV.gather(1, targets_T[:, None])[:, 0]
    return LogProbOutput(logprobs_T, entropy_T, torch.logsumexp(scores_TV, -1))


def rows_per_chunk(vocab: int, chunk_bytes: int) -> int:
    """Rows of float32 logits that fit the budget: a multiple of 16, at least 64.

    Thinner chunks would stream the whole weight from memory for a few rows each.
    """
    return max(MIN_CHUNK_ROWS, chunk_bytes // (4 * vocab) // 16 * 16)


def _normalise(scores_TV: Tensor, targets_T: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Replace scores by log-probabilities in place; return the rows' logprob, lse and entropy."""
    row_max_T = scores_TV.amax(1)
    torch._log_softmax(scores_TV, 1, False, out=scores_TV)
    logprobs_T = scores_TV.gather(1, targets_T[:, None])[:, 0]
    lse_T = row_max_T - scores_TV.amax(1)  # from the likeliest token: exact where the target has probability zero
    if not want_entropy:
        return logprobs_T, lse_T, None
    finite_TV = scores_TV.clamp(min=torch.finfo(scores_TV.dtype).min)  # 0 · −inf would be NaN
    return logprobs_T, lse_T, -torch.linalg.vecdot(scores_TV.exp(), finite_TV)


def _softmax_(scores_TV: Tensor) -> Tensor:
    """Softmax in place: exp(s − lse) would lose digits to the rounding of a large log-sum-exp."""
    torch._softmax(scores_TV, 1, False, out=scores_TV)
    return scores_TV


def _row_gradients(p_TV: Tensor, entropy_T: Tensor, row_T: Tensor, grad_entropy_T: Tensor) -> Tensor:
    """p·(row − h·(log p + entropy)), the gradient without its one-hot part."""
    logp_TV = p_TV.log().clamp_(min=torch.finfo(p_TV.dtype).min)
    return logp_TV.add_(entropy_T[:, None]).mul_(-grad_entropy_T[:, None]).add_(row_T[:, None]).mul_(p_TV)


class ChunkedLogProbs(torch.autograd.Function):
    """Log-probabilities from hidden states, `rows` rows of logits at a time.

    When one chunk holds all rows its probabilities are kept for the backward, otherwise they are computed again.
    Returns logprob, entropy and lse rows; entropy is empty unless asked for.
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
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.float64 if hidden_TH.dtype == torch.float64 else torch.float32
        tokens, vocab = hidden_TH.shape[0], weight_VH.shape[0]
        logprobs_T, lse_T = (hidden_TH.new_empty(tokens, dtype=dtype) for _ in range(2))
        entropy_T = hidden_TH.new_empty(tokens if want_entropy else 0, dtype=dtype)
        buffer_TV = hidden_TH.new_empty(min(rows, tokens), vocab, dtype=dtype)
        scorer = _Scorer(hidden_TH, weight_VH, bias_V, inverse_temperature_T, dtype)
        for start in range(0, tokens, rows):
            chunk = slice(start, start + rows)
            scores_TV = scorer(chunk, buffer_TV)
            logprobs_T[chunk], lse_T[chunk], entropy = _normalise(scores_TV, targets_T[chunk], want_entropy)
            if entropy is not None:
                entropy_T[chunk] = entropy
        kept_TV = buffer_TV.exp_() if keep and tokens <= rows else None
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T, inverse_temperature_T, lse_T, entropy_T, kept_TV)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T, lse_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_T: Tensor | None, grad_entropy_T: Tensor | None, grad_lse_T: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, bias_V, targets_T, inverse_temperature_T, lse_T, entropy_T, kept_TV = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        scorer = _Scorer(hidden_TH, weight_VH, bias_V, inverse_temperature_T, lse_T.dtype)
        scaled_TH, weight = scorer.scaled_TH, scorer.weight_VH
        one_hot_T = grad_logprobs_T if grad_logprobs_T is not None else torch.zeros_like(lse_T)
        row_T = -one_hot_T if grad_lse_T is None else grad_lse_T - one_hot_T
        grad_TH = torch.empty_like(scaled_TH) if needs_hidden else None
        grad_VH = torch.zeros_like(weight) if needs_weight else None
        grad_V = weight.new_zeros(weight.shape[0]) if needs_bias else None
        tokens, rows = hidden_TH.shape[0], ctx.rows
        buffer_TV = kept_TV if kept_TV is not None else scaled_TH.new_empty(min(rows, tokens), weight.shape[0])
        for start in range(0, tokens, rows):
            chunk = slice(start, start + rows)
            p_TV = buffer_TV if kept_TV is not None else _softmax_(scorer(chunk, buffer_TV))
            scale_T = row_T[chunk]
            if grad_entropy_T is not None:
                p_TV = _row_gradients(p_TV, entropy_T[chunk], row_T[chunk], grad_entropy_T[chunk])
                scale_T = torch.ones_like(scale_T)
            if grad_TH is not None:
                torch.mm(p_TV, weight, out=grad_TH[chunk])
                grad_TH[chunk].mul_(scale_T[:, None])
            if grad_VH is not None:
                grad_VH.addmm_(p_TV.t(), scaled_TH[chunk] * scale_T[:, None])
            if grad_V is not None:
                grad_V.addmv_(p_TV.t(), scorer.unscale(scale_T, chunk))
        if grad_TH is not None:
            grad_TH.addcmul_(weight.index_select(0, targets_T), one_hot_T[:, None])
            grad_TH = scorer.unscale(grad_TH).to(hidden_TH.dtype)
        if grad_VH is not None:
            grad_VH.index_add_(0, targets_T, scaled_TH * one_hot_T[:, None])
            grad_VH = grad_VH.to(weight_VH.dtype)
        if grad_V is not None and bias_V is not None:
            grad_V.index_add_(0, targets_T, scorer.unscale(one_hot_T))
            grad_V = grad_V.to(bias_V.dtype)
        return grad_TH, grad_VH, grad_V, None, None, None, None, None


class _Scorer:
    """Scores of a chunk of rows; the temperature divides the hidden states, which are narrower than the logits."""

    def __init__(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        inverse_temperature_T: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self._inverse_temperature_T = inverse_temperature_T
        self._bias_V = None if bias_V is None else bias_V.to(dtype)
        self.scaled_TH = self.unscale(hidden_TH.to(dtype))
        self.weight_VH = weight_VH.to(dtype)

    def unscale(self, rows: Tensor, chunk: slice = slice(None)) -> Tensor:
        """Rows divided by their temperature."""
        if self._inverse_temperature_T is None:
            return rows
        scale_T = self._inverse_temperature_T[chunk]
        return rows * (scale_T if rows.ndim == 1 else scale_T[:, None])

    def __call__(self, chunk: slice, buffer_TV: Tensor) -> Tensor:
        rows_TH = self.scaled_TH[chunk]
        scores_TV = torch.mm(rows_TH, self.weight_VH.t(), out=buffer_TV[: rows_TH.shape[0]])
        if self._bias_V is not None:
            ones_T = rows_TH.new_ones(rows_TH.shape[0])
            scores_TV.addcmul_(self.unscale(ones_T, chunk)[:, None], self._bias_V)
        return scores_TV


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
        dtype = torch.float64 if logits_TV.dtype == torch.float64 else torch.float32
        tokens = logits_TV.shape[0]
        logprobs_T, lse_T = (logits_TV.new_empty(tokens, dtype=dtype) for _ in range(2))
        entropy_T = logits_TV.new_empty(tokens if want_entropy else 0, dtype=dtype)
        for start in range(0, tokens, rows):
            chunk = slice(start, start + rows)
            scores_TV = _scaled(logits_TV, inverse_temperature_T, chunk, dtype)
            logprobs_T[chunk], lse_T[chunk], entropy = _normalise(scores_TV, targets_T[chunk], want_entropy)
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
        for start in range(0, logits_TV.shape[0], ctx.rows):
            chunk = slice(start, start + ctx.rows)
            p_TV = _softmax_(_scaled(logits_TV, inverse_temperature_T, chunk, lse_T.dtype))
            if grad_entropy_T is not None:
                p_TV = _row_gradients(p_TV, entropy_T[chunk], row_T[chunk], grad_entropy_T[chunk])
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
