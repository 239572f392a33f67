"""What the chunked paths share: scores of a block of rows, their normalisation, and sums of the head's gradients."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_CHUNK_ROWS = 64


def rows_per_chunk(vocab: int, chunk_bytes: int) -> int:
    """Rows of float32 logits that fit the budget: a multiple of 16, at least 64.

    Thinner chunks would stream the whole weight from memory for a few rows each.
    """
    return max(MIN_CHUNK_ROWS, chunk_bytes // (4 * vocab) // 16 * 16)


def row_chunks(tokens: int, rows: int) -> list[slice]:
    """Chunks of `rows` rows; the last may be shorter."""
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def statistics_dtype(inputs: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for all others."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def normalise_(scores_TV: Tensor, targets_T: Tensor, want_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Replace scores by log-probabilities in place; return the rows' logprob, lse and entropy."""
    row_max_T = scores_TV.amax(1)
    torch._log_softmax(scores_TV, 1, False, out=scores_TV)
    logprobs_T = scores_TV.gather(1, targets_T[:, None])[:, 0]
    lse_T = row_max_T - scores_TV.amax(1)  # from the likeliest token: exact where the target has probability zero
    if not want_entropy:
        return logprobs_T, lse_T, None
    finite_TV = scores_TV.clamp(min=torch.finfo(scores_TV.dtype).min)  # 0 · −inf would be NaN
    return logprobs_T, lse_T, -torch.linalg.vecdot(scores_TV.exp(), finite_TV)


def softmax_(scores_TV: Tensor) -> Tensor:
    """Softmax in place: exp(s − lse) would lose digits to the rounding of a large log-sum-exp."""
    torch._softmax(scores_TV, 1, False, out=scores_TV)
    return scores_TV


def entropy_gradient(p_TV: Tensor, entropy_T: Tensor, row_T: Tensor, grad_entropy_T: Tensor) -> Tensor:
    """p·(row − h·(log p + entropy)), the gradient of the scores without its one-hot part."""
    logp_TV = p_TV.log().clamp_(min=torch.finfo(p_TV.dtype).min)
    return logp_TV.add_(entropy_T[:, None]).mul_(-grad_entropy_T[:, None]).add_(row_T[:, None]).mul_(p_TV)


class Scorer:
    """Scores of a chunk of rows; the temperature divides the hidden states, which are narrower than the logits.

    Under a soft cap c the scores are c·tanh(logits / c) / τ, and the temperature divides what was capped.
    """

    def __init__(
        self,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        inverse_temperature_T: Tensor | None,
        softcap: float | None = None,
    ) -> None:
        self.dtype = statistics_dtype(hidden_TH)
        self.softcap = softcap
        self._inverse_temperature_T = None if softcap else inverse_temperature_T
        self._capped_by_T = inverse_temperature_T if softcap else None
        self._bias_V = None if bias_V is None else bias_V.to(self.dtype)
        self.scaled_TH = self.unscale(hidden_TH.to(self.dtype))
        self.weight_VH = weight_VH.to(self.dtype)

    def unscale(self, rows: Tensor, chunk: slice = slice(None)) -> Tensor:
        """Rows divided by their temperature."""
        if self._inverse_temperature_T is None:
            return rows
        scale_T = self._inverse_temperature_T[chunk]
        return rows * (scale_T if rows.ndim == 1 else scale_T[:, None])

    def buffer(self, rows: int) -> Tensor:
        """Room for the scores of `rows` rows."""
        return self.scaled_TH.new_empty(rows, self.weight_VH.shape[0])

    def __call__(self, chunk: slice, buffer_TV: Tensor) -> Tensor:
        rows_TH = self.scaled_TH[chunk]
        scores_TV = torch.mm(rows_TH, self.weight_VH.t(), out=buffer_TV[: rows_TH.shape[0]])
        if self._bias_V is not None:
            ones_T = rows_TH.new_ones(rows_TH.shape[0])
            scores_TV.addcmul_(self.unscale(ones_T, chunk)[:, None], self._bias_V)
        if self.softcap:
            scores_TV.div_(self.softcap).tanh_().mul_(self.softcap)
            if self._bias_V is not None:  # what a bias of −inf takes out of the vocabulary stays out
                scores_TV.masked_fill_(self._bias_V.isneginf(), -torch.inf)
            if self._capped_by_T is not None:
                scores_TV.mul_(self._capped_by_T[chunk, None])
        return scores_TV

    def slope(self, chunk: slice, scores_TV: Tensor) -> Tensor | None:
        """∂score/∂logit of a chunk's scores under a soft cap, (1 − (capped / c)²) / τ, in a tensor of its own."""
        if not self.softcap:
            return None
        share_TV = scores_TV / self.softcap
        inverse_T1 = None if self._capped_by_T is None else self._capped_by_T[chunk, None]
        if inverse_T1 is not None:
            share_TV.div_(inverse_T1)
        slope_TV = share_TV.clamp_(min=-1).square_().neg_().add_(1)
        return slope_TV if inverse_T1 is None else slope_TV.mul_(inverse_T1)


class HeadGradients:
    """Gradients of hidden states, weight and bias, summed over chunks of rows whose probabilities are at hand.

    one_hot_T, row_T and grad_entropy_T are g, l − g and h of the equation in reference.py. In a vocabulary wider than
    twice the hidden states the one-hot part of all rows is added at the end; without an entropy gradient the rest is p
    scaled by rows, and the scaling moves to the [T, H] side, too. A narrow one takes both on the [T, V] side, and so
    does any vocabulary under a soft cap, whose slope differs from score to score.
    """

    def __init__(
        self,
        scorer: Scorer,
        targets_T: Tensor,
        needs: tuple[bool, ...],
        one_hot_T: Tensor,
        row_T: Tensor,
        entropy_T: Tensor,
        grad_entropy_T: Tensor | None,
    ) -> None:
        """`needs`: whether hidden states, weight and bias want a gradient."""
        self._scorer, self._targets_T = scorer, targets_T
        self._one_hot_T, self._row_T = one_hot_T, row_T
        self._entropy_T, self._grad_entropy_T = entropy_T, grad_entropy_T
        weight = scorer.weight_VH
        self._narrow = bool(scorer.softcap) or weight.shape[0] <= 2 * weight.shape[1]
        self._grad_TH = torch.empty_like(scorer.scaled_TH) if needs[0] else None
        self._grad_VH = torch.zeros_like(weight) if needs[1] else None
        self._grad_V = weight.new_zeros(weight.shape[0]) if needs[2] else None

    def add(self, chunk: slice, p_TV: Tensor, slope_TV: Tensor | None = None) -> None:
        """The part of a chunk's probabilities, [rows, V], which are read only, as Scorer.slope is."""
        scaled_TH, weight = self._scorer.scaled_TH[chunk], self._scorer.weight_VH
        scale_T: Tensor | None = None
        if self._grad_entropy_T is not None:
            p_TV = entropy_gradient(p_TV, self._entropy_T[chunk], self._row_T[chunk], self._grad_entropy_T[chunk])
        elif self._narrow:
            p_TV = p_TV * self._row_T[chunk, None]
        else:
            scale_T = self._row_T[chunk]
        if self._narrow:
            p_TV.scatter_add_(1, self._targets_T[chunk, None], self._one_hot_T[chunk, None])
        if slope_TV is not None:
            p_TV.mul_(slope_TV)
        if self._grad_TH is not None:
            grad_TH = torch.mm(p_TV, weight, out=self._grad_TH[chunk])
            if scale_T is not None:
                grad_TH.mul_(scale_T[:, None])
        if self._grad_VH is not None:
            self._grad_VH.addmm_(p_TV.t(), scaled_TH if scale_T is None else scaled_TH * scale_T[:, None])
        if self._grad_V is not None:
            ones_T = torch.ones_like(self._row_T[chunk]) if scale_T is None else scale_T
            self._grad_V.addmv_(p_TV.t(), self._scorer.unscale(ones_T, chunk))

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The sums with the one-hot part of all rows, in the scorer's dtype."""
        scorer, one_hot_T, targets_T = self._scorer, self._one_hot_T, self._targets_T
        if self._grad_TH is not None and not self._narrow:
            self._grad_TH.addcmul_(scorer.weight_VH.index_select(0, targets_T), one_hot_T[:, None])
        if self._grad_VH is not None and not self._narrow:
            self._grad_VH.index_add_(0, targets_T, scorer.scaled_TH * one_hot_T[:, None])
        if self._grad_V is not None and not self._narrow:
            self._grad_V.index_add_(0, targets_T, scorer.unscale(one_hot_T))
        grad_TH = None if self._grad_TH is None else scorer.unscale(self._grad_TH)
        return grad_TH, self._grad_VH, self._grad_V


def product(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out = a · b, or out += a · b, with float32 sums (float64 for float64) whatever the dtype of `out`."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=float(add), out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=out.dtype, beta=float(add), out=out)
    else:
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=float(add), out=out)


def cast_like(gradients: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients in the dtypes of their inputs."""
    return tuple(
        None if gradient is None or like is None else gradient.to(like.dtype)
        for gradient, like in zip(gradients, inputs, strict=True)
    )
