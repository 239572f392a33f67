"""Checks and dispatch of the log-prob operations: Triton on a GPU, the chunked reference elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar_kernels.backend import Backend, choose_backend
from lodestar_kernels.logprob.reference import (
    ChunkedLogProbs,
    ChunkedLogProbsFromLogits,
    LogProbOutput,
    rows_per_chunk,
)

CPU_CHUNK_BYTES = 128 << 20
GPU_CHUNK_BYTES = 512 << 20


def logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    lse: bool = False,
    chunk_bytes: int | None = None,
    ignore_index: int = -100,
    backend: Backend | None = None,
) -> LogProbOutput:
    """Log-probability of each target under softmax((hidden · weightᵀ + bias) / temperature).

    hidden_TH: hidden states [T, H]; weight_VH: the LM head [V, H]; targets_T: token ids [T], where `ignore_index` marks
    rows to skip (their results are 0 and they pass no gradient); bias: [V]; temperature: a number or one per token [T],
    positive, not differentiated. `entropy` and `lse` ask for the entropy in nats and the log-sum-exp of the scores.
    All three results are differentiable with respect to hidden, weight and bias.

    chunk_bytes bounds the float32 logits that exist at any time (default 128 MiB on a CPU, 512 MiB on a GPU); at least
    64 rows are computed at once. On a CPU, logits that fit the budget whole are kept for the backward.

    backend: "triton" (float16, bfloat16, float32) or "torch"; by default Triton on a GPU and torch elsewhere.

    Raises ValueError naming the argument for wrong shapes, dtypes, devices, temperatures or targets out of range.
    """
    _check_projection(hidden_TH, weight_VH, bias)
    tokens, vocab = hidden_TH.shape[0], weight_VH.shape[0]
    kept_T = _check_targets(targets_T, tokens, vocab, ignore_index, hidden_TH.device)
    inverse_temperature_T = _inverse_temperature(temperature, hidden_TH)
    if kept_T is not None:
        hidden_TH, targets_T = hidden_TH.index_select(0, kept_T), targets_T.index_select(0, kept_T)
        inverse_temperature_T = None if inverse_temperature_T is None else inverse_temperature_T[kept_T]
    inputs = (hidden_TH, weight_VH, bias, targets_T, inverse_temperature_T)
    if choose_backend(backend, hidden_TH) == "triton" and hidden_TH.shape[0]:
        from lodestar_kernels.logprob.sliced import SlicedLogProbs

        results = SlicedLogProbs.apply(*inputs, chunk_bytes or GPU_CHUNK_BYTES, entropy)  # type: ignore[no-untyped-call]
    else:
        rows = rows_per_chunk(vocab, chunk_bytes or CPU_CHUNK_BYTES)
        trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:3])
        results = ChunkedLogProbs.apply(*inputs, rows, entropy, trains)  # type: ignore[no-untyped-call]
    return _collect(results, kept_T, tokens, entropy, lse)


def logprobs_from_logits(
    logits_TV: Tensor,
    targets_T: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    lse: bool = False,
    chunk_bytes: int | None = None,
    ignore_index: int = -100,
    backend: Backend | None = None,
) -> LogProbOutput:
    """As `logprobs`, from logits [T, V] that the caller already holds; −inf marks a token of probability zero."""
    if logits_TV.ndim != 2 or not logits_TV.is_floating_point():
        raise ValueError(f"logits_TV must be floating point [T, V], got {logits_TV.dtype} {list(logits_TV.shape)}")
    tokens, vocab = logits_TV.shape
    kept_T = _check_targets(targets_T, tokens, vocab, ignore_index, logits_TV.device)
    inverse_temperature_T = _inverse_temperature(temperature, logits_TV)
    if kept_T is not None:
        logits_TV, targets_T = logits_TV.index_select(0, kept_T), targets_T.index_select(0, kept_T)
        inverse_temperature_T = None if inverse_temperature_T is None else inverse_temperature_T[kept_T]
    inputs = (logits_TV, targets_T, inverse_temperature_T)
    if choose_backend(backend, logits_TV) == "triton" and logits_TV.shape[0]:
        from lodestar_kernels.logprob.sliced import LogProbsFromLogits

        results = LogProbsFromLogits.apply(*inputs, entropy)  # type: ignore[no-untyped-call]
    else:
        rows = rows_per_chunk(vocab, chunk_bytes or CPU_CHUNK_BYTES)
        results = ChunkedLogProbsFromLogits.apply(*inputs, rows, entropy)  # type: ignore[no-untyped-call]
    return _collect(results, kept_T, tokens, entropy, lse)


def _collect(
    results: tuple[Tensor, Tensor, Tensor], kept_T: Tensor | None, tokens: int, entropy: bool, lse: bool
) -> LogProbOutput:
    """Put the rows that were computed back among the ignored ones."""
    wanted = [result if want else None for result, want in zip(results, (True, entropy, lse), strict=True)]
    if kept_T is not None:
        wanted = [None if r is None else r.new_zeros(tokens).index_copy(0, kept_T, r) for r in wanted]
    logprobs_T, entropy_T, lse_T = wanted
    assert logprobs_T is not None
    return LogProbOutput(logprobs_T, entropy_T, lse_T)


def _check_projection(hidden_TH: Tensor, weight_VH: Tensor, bias: Tensor | None) -> None:
    if hidden_TH.ndim != 2 or weight_VH.ndim != 2 or hidden_TH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            "hidden_TH [T, H] and weight_VH [V, H] must agree in H, "
            f"got {list(hidden_TH.shape)} and {list(weight_VH.shape)}"
        )
    if bias is not None and bias.shape != weight_VH.shape[:1]:
        raise ValueError(f"bias must be [V] = [{weight_VH.shape[0]}], got {list(bias.shape)}")
    for name, tensor in (("weight_VH", weight_VH), ("bias", bias)):
        if tensor is not None and (tensor.dtype != hidden_TH.dtype or tensor.device != hidden_TH.device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} and hidden_TH is {hidden_TH.dtype} on "
                f"{hidden_TH.device}: cast or move one of them"
            )
    if not hidden_TH.is_floating_point():
        raise ValueError(f"hidden_TH must be floating point, got {hidden_TH.dtype}")
    if weight_VH.shape[0] == 0:
        raise ValueError("weight_VH has no rows: the vocabulary is empty")


def _check_targets(
    targets_T: Tensor, tokens: int, vocab: int, ignore_index: int, device: torch.device
) -> Tensor | None:
    """Rows that are not ignored, or None when all rows count."""
    if targets_T.shape != (tokens,) or targets_T.dtype != torch.int64 or targets_T.device != device:
        raise ValueError(
            f"targets_T must be int64 [T] = [{tokens}] on {device}, got {targets_T.dtype} "
            f"{list(targets_T.shape)} on {targets_T.device}"
        )
    if tokens == 0:
        return None
    wrong_T = (targets_T < 0) | (targets_T >= vocab)
    if not wrong_T.any():
        return None
    if (wrong_T & (targets_T != ignore_index)).any():
        bad = int(targets_T[wrong_T & (targets_T != ignore_index)][0])
        raise ValueError(
            f"targets_T holds {bad}: outside the vocabulary of {vocab}, and not ignore_index={ignore_index}"
        )
    return (~wrong_T).nonzero()[:, 0]


def _inverse_temperature(temperature: float | Tensor, like: Tensor) -> Tensor | None:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    tokens = like.shape[0]
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        return None if temperature == 1.0 else like.new_full((tokens,), 1.0 / temperature, dtype=dtype)
    if temperature.shape != (tokens,) or temperature.device != like.device:
        raise ValueError(
            f"temperature must be a number or [T] = [{tokens}] on {like.device}, got {list(temperature.shape)} on "
            f"{temperature.device}"
        )
    if temperature.requires_grad:
        raise ValueError("temperature is not differentiated: detach it")
    if not temperature.is_cuda and tokens and not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be positive, got {float(temperature.min())}")
    return temperature.to(dtype).reciprocal()
