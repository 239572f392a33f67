"""The GPU path of the log-prob operation: matrix products of torch, and Triton kernels between them.

Scores exist one tile at a time: a block of rows by a slice of the vocabulary, within a byte budget. Slices of the
vocabulary are the outer loop because of the backward: a slice's rows of dW are then finished by one product over all
tokens (or summed in a float32 buffer of that slice's size), where every chunk of tokens would read and write a float32
[V, H].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.logprob.chunks import cast_like, product
from lodestar_kernels.logprob.kernel import accumulate_statistics, score_gradient

MIN_SLICE = 4096
SLICE_MULTIPLE = 256
"""A matrix product's tile. Rows of a tile of scores start at multiples of it, too: a product over a vocabulary like
50,257 would otherwise read and write rows that are not aligned to 16 bytes, for which cuBLAS has only slow kernels."""
MAX_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of [T, V]: `rows` × `pitch` scores fit the budget, float32 scores and their gradient counted.

    Slices of the vocabulary are `width` wide, the last one narrower; rows of a tile lie `pitch` apart.
    """

    tokens: int
    vocab: int
    rows: int
    width: int
    pitch: int

    @staticmethod
    def within(tokens: int, vocab: int, chunk_bytes: int, gradient_bytes: int) -> Tiling:
        """All tokens in one block of rows as long as slices keep 4,096 columns, which a matrix product needs."""
        scores = max(1, chunk_bytes // (4 + gradient_bytes))
        widest = max(MIN_SLICE, scores // max(tokens, 1) // SLICE_MULTIPLE * SLICE_MULTIPLE)
        slices = -(-vocab // widest)
        pitch = -(-vocab // (slices * SLICE_MULTIPLE)) * SLICE_MULTIPLE  # slices of one size: no thin last product
        rows = min(tokens, max(64, scores // pitch // 64 * 64))
        return Tiling(tokens, vocab, rows, min(vocab, pitch), pitch)

    def tile(self, buffer: Tensor, rows: slice, columns: slice) -> Tensor:
        """Room for a tile in a buffer of `rows` × `pitch` elements."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return buffer[: height * self.pitch].view(height, self.pitch)[:, :width]

    @property
    def block(self) -> int:
        """Columns a kernel takes at once, the same for every slice."""
        return block_of(self.width)

    @property
    def slices(self) -> Iterator[slice]:
        """Slices of the vocabulary."""
        return (slice(i, min(i + self.width, self.vocab)) for i in range(0, self.vocab, self.width))

    @property
    def blocks(self) -> Iterator[slice]:
        """Blocks of rows."""
        return (slice(i, min(i + self.rows, self.tokens)) for i in range(0, self.tokens, self.rows))


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Running statistics of rows, float32 [T] each (see kernel.py); slices of the vocabulary merge into them."""

    maximum_T: Tensor
    sum_T: Tensor
    moment_T: Tensor
    target_score_T: Tensor

    @staticmethod
    def empty(like: Tensor, tokens: int) -> RowStatistics:
        """Statistics of no scores at all."""
        maximum_T = like.new_full((tokens,), float("-inf"), dtype=torch.float32)
        return RowStatistics(maximum_T, *torch.zeros(3, tokens, dtype=torch.float32, device=like.device).unbind())

    def add(
        self,
        logits_TV: Tensor,
        rows: slice,
        first: int,
        targets_T: Tensor,
        bias_V: Tensor | None,
        inverse_temperature_T: Tensor | None,
        entropy: bool,
        block: int,
        softcap: float | None = None,
    ) -> None:
        """Fold in a tile of logits whose first column is token `first`."""
        height, width = logits_TV.shape
        accumulate_statistics[(height,)](
            logits_TV,
            _or(bias_V, logits_TV),
            _or(inverse_temperature_T, logits_TV, rows),
            targets_T[rows],
            *(t[rows] for t in (self.maximum_T, self.sum_T, self.moment_T, self.target_score_T)),
            logits_TV.stride(0),
            first,
            width,
            softcap or 1.0,
            HAS_BIAS=bias_V is not None,
            HAS_TEMPERATURE=inverse_temperature_T is not None,
            HAS_SOFTCAP=softcap is not None,
            ENTROPY=entropy,
            BLOCK_V=block,
            num_warps=8 if block >= 4096 else 4,
        )

    def results(self, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """logprob, entropy (empty unless asked for), lse and log Σ exp(s − m) rows."""
        log_sum_T = self.sum_T.log()
        entropy_T = log_sum_T - self.moment_T / self.sum_T if entropy else log_sum_T.new_empty(0)
        return (self.target_score_T - self.maximum_T) - log_sum_T, entropy_T, self.maximum_T + log_sum_T, log_sum_T


@dataclass(frozen=True, slots=True)
class ScoreGradients:
    """What the gradient of a tile of scores needs besides the scores: the saved rows and the upstream gradients."""

    targets_T: Tensor
    maximum_T: Tensor
    log_sum_T: Tensor
    entropy_T: Tensor
    bias_V: Tensor | None
    inverse_temperature_T: Tensor | None
    grad_logprobs_T: Tensor | None
    grad_entropy_T: Tensor | None
    grad_lse_T: Tensor | None
    softcap: float | None = None

    @staticmethod
    def of(ctx: Any, upstream: tuple[Tensor | None, ...], softcap: float | None = None) -> ScoreGradients:
        """From what a forward saved (the last six tensors) and the gradients of its three results."""
        dense = [None if g is None else g.contiguous() for g in upstream]
        bias_V, targets_T, inverse_temperature_T, maximum_T, log_sum_T, entropy_T = ctx.saved_tensors[-6:]
        return ScoreGradients(
            targets_T,
            maximum_T,
            log_sum_T,
            entropy_T,
            bias_V,
            inverse_temperature_T,
            dense[0],
            dense[1],
            dense[2],
            softcap,
        )

    def write(self, logits_TV: Tensor, rows: slice, first: int, out_TV: Tensor, block: int) -> Tensor:
        """Gradient of a tile of logits, written to `out_TV` in its dtype."""
        height, width = logits_TV.shape
        block = min(block, 2048)
        upstream = (self.grad_logprobs_T, self.grad_entropy_T, self.grad_lse_T)
        score_gradient[(height, triton.cdiv(width, block))](
            logits_TV,
            _or(self.bias_V, logits_TV),
            _or(self.inverse_temperature_T, logits_TV, rows),
            self.targets_T[rows],
            self.maximum_T[rows],
            self.log_sum_T[rows],
            _or(self.entropy_T if self.grad_entropy_T is not None else None, logits_TV, rows),
            *(_or(g, logits_TV, rows) for g in upstream),
            out_TV,
            logits_TV.stride(0),
            out_TV.stride(0),
            first,
            width,
            self.softcap or 1.0,
            HAS_BIAS=self.bias_V is not None,
            HAS_TEMPERATURE=self.inverse_temperature_T is not None,
            HAS_SOFTCAP=self.softcap is not None,
            GRAD_LOGPROB=upstream[0] is not None,
            GRAD_ENTROPY=upstream[1] is not None,
            GRAD_LSE=upstream[2] is not None,
            BLOCK_V=block,
            num_warps=4,
        )
        return out_TV


class SlicedLogProbs(torch.autograd.Function):
    """Log-probabilities from hidden states; the backward computes the scores again, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        inverse_temperature_T: Tensor | None,
        chunk_bytes: int,
        want_entropy: bool,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tiling = Tiling.within(hidden_TH.shape[0], weight_VH.shape[0], chunk_bytes, hidden_TH.element_size())
        statistics = RowStatistics.empty(hidden_TH, tiling.tokens)
        buffer = hidden_TH.new_empty(tiling.rows * tiling.pitch, dtype=torch.float32)
        for columns in tiling.slices:
            for rows in tiling.blocks:
                logits_TV = tiling.tile(buffer, rows, columns)
                product(hidden_TH[rows], weight_VH[columns].t(), logits_TV)
                statistics.add(
                    logits_TV, rows, columns.start, targets_T, bias_V, inverse_temperature_T, want_entropy,
                    tiling.block, softcap,
                )  # fmt: skip
        logprobs_T, entropy_T, lse_T, log_sum_T = statistics.results(want_entropy)
        ctx.save_for_backward(
            hidden_TH, weight_VH, bias_V, targets_T, inverse_temperature_T, statistics.maximum_T, log_sum_T, entropy_T
        )
        ctx.tiling, ctx.softcap = tiling, softcap
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T, lse_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, bias_V = ctx.saved_tensors[:3]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        gradients = ScoreGradients.of(ctx, upstream, ctx.softcap)
        tiling: Tiling = ctx.tiling
        scores = hidden_TH.new_empty(tiling.rows * tiling.pitch, dtype=torch.float32)
        tile_gradient = hidden_TH.new_empty(tiling.rows * tiling.pitch)
        # A sum over several tiles is kept in float32; the sum within a tile is the matrix product's own, also float32.
        one_slice, one_block = tiling.width >= tiling.vocab, tiling.rows >= tiling.tokens
        grad_TH = _sum_like(hidden_TH, one_slice) if needs_hidden else None
        grad_VH = torch.empty_like(weight_VH) if needs_weight else None
        slice_sums = _sum_like(weight_VH[: tiling.width], one_block) if needs_weight and not one_block else None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias and bias_V is not None else None
        for columns in tiling.slices:
            weight_slice = weight_VH[columns]
            slice_sum = None if grad_VH is None else grad_VH[columns]
            if slice_sums is not None:
                slice_sum = slice_sums[: columns.stop - columns.start]
            for rows in tiling.blocks:
                logits_TV = tiling.tile(scores, rows, columns)
                product(hidden_TH[rows], weight_slice.t(), logits_TV)
                d_TV = tiling.tile(tile_gradient, rows, columns)
                gradients.write(logits_TV, rows, columns.start, d_TV, tiling.block)
                if grad_TH is not None:
                    product(d_TV, weight_slice, grad_TH[rows], add=columns.start > 0)
                if slice_sum is not None:
                    product(d_TV.t(), hidden_TH[rows], slice_sum, add=rows.start > 0)
                if grad_V is not None:
                    grad_V[columns] += d_TV.sum(0, dtype=torch.float32)
            if grad_VH is not None and slice_sums is not None:
                grad_VH[columns] = slice_sums[: columns.stop - columns.start]
        return *cast_like((grad_TH, grad_VH, grad_V), (hidden_TH, weight_VH, bias_V)), *(None,) * 5


class LogProbsFromLogits(torch.autograd.Function):
    """Log-probabilities from logits that exist already: one pass forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, inverse_temperature_T: Tensor | None, want_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_TV = logits_TV if logits_TV.stride(1) == 1 else logits_TV.contiguous()
        statistics = RowStatistics.empty(logits_TV, logits_TV.shape[0])
        block = block_of(logits_TV.shape[1])
        statistics.add(logits_TV, slice(None), 0, targets_T, None, inverse_temperature_T, want_entropy, block)
        logprobs_T, entropy_T, lse_T, log_sum_T = statistics.results(want_entropy)
        ctx.save_for_backward(
            logits_TV, None, targets_T, inverse_temperature_T, statistics.maximum_T, log_sum_T, entropy_T
        )
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T, lse_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_TV = ctx.saved_tensors[0]
        gradients = ScoreGradients.of(ctx, upstream)
        grad_TV = torch.empty(logits_TV.shape, dtype=logits_TV.dtype, device=logits_TV.device)
        block = block_of(logits_TV.shape[1])
        return gradients.write(logits_TV, slice(None), 0, grad_TV, block), None, None, None


def block_of(width: int) -> int:
    """Columns a kernel takes at once of rows that are `width` wide."""
    return min(MAX_BLOCK, 1 << max(4, (width - 1).bit_length()))


def _or(tensor: Tensor | None, placeholder: Tensor, rows: slice = slice(None)) -> Tensor:
    """The rows of a tensor, or any pointer where the kernel is told not to read one."""
    return placeholder if tensor is None else tensor[rows]


def _sum_like(like: Tensor, one_tile: bool) -> Tensor:
    """Room for a sum over tiles, whose first one overwrites what is there."""
    return torch.empty_like(like, dtype=like.dtype if one_tile else torch.float32)
