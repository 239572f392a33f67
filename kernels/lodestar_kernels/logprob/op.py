"""Checks and dispatch of the log-prob operations: Triton on a GPU, chunks of plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar_kernels.backend import Backend, choose_backend
from lodestar_kernels.logprob.chunks import rows_per_chunk
from lodestar_kernels.logprob.divergence import ChunkedDivergence
from lodestar_kernels.logprob.reference import ChunkedLogProbs, ChunkedLogProbsFromLogits, LogProbOutput
from lodestar_kernels.logprob.token_loss import ChunkedTokenLoss, TokenLoss

CPU_CHUNK_BYTES = 128 << 20
GPU_CHUNK_BYTES = 704 << 20
KEPT_CHUNKS = 4
"""Chunks whose probabilities a CPU keeps for the backward, which saves it a matrix product each."""


def logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    lse: bool = False,
    chunk_bytes: int | None = None,
    ignore_index: int = -100,
    backend: Backend | None = None,
) -> LogProbOutput:
    """Log-probability of each target under softmax(cap(hidden · weightᵀ + bias) / temperature).

    hidden_TH: hidden states [T, H]; weight_VH: the LM head [V, H]; targets_T: token ids [T], where `ignore_index` marks
    rows to skip (their results are 0 and they pass no gradient); bias: [V]; temperature: a number or one per token [T],
    positive, not differentiated; softcap: c of cap(z) = c·tanh(z / c), positive, or None for no cap. A bias of −inf
    takes a token out, cap or not. `entropy` and `lse` ask for the entropy in nats and the log-sum-exp of the scores.
    All three results are differentiable with respect to hidden, weight and bias.

    chunk_bytes bounds the logits that are computed at once (default 128 MiB on a CPU; on a GPU 704 MiB with their
    gradient); at least 64 rows are. On a CPU the probabilities of the first four chunks are kept for the backward, the
    rest is computed again; see `token_loss` for a backward that keeps and computes nothing again.

    backend: "triton" (float16, bfloat16, float32) or "torch"; by default Triton on a GPU and torch elsewhere.

    Raises ValueError naming the argument for wrong shapes, dtypes, devices, temperatures or targets out of range.
    """
    _check_projection(hidden_TH, weight_VH, bias)
    tokens, vocab = hidden_TH.shape[0], weight_VH.shape[0]
    kept_T = _check_targets(targets_T, tokens, vocab, ignore_index, hidden_TH.device)
    inverse_temperature_T = _inverse_temperature(temperature, hidden_TH)
    _check_softcap("softcap", softcap)
    if kept_T is not None:
        hidden_TH, targets_T = hidden_TH.index_select(0, kept_T), targets_T.index_select(0, kept_T)
        inverse_temperature_T = None if inverse_temperature_T is None else inverse_temperature_T[kept_T]
    inputs = (hidden_TH, weight_VH, bias, targets_T, inverse_temperature_T)
    if choose_backend(backend, hidden_TH) == "triton" and hidden_TH.shape[0]:
        from lodestar_kernels.logprob.sliced import SlicedLogProbs

        results = SlicedLogProbs.apply(*inputs, _budget(chunk_bytes, GPU_CHUNK_BYTES), entropy, softcap)  # type: ignore[no-untyped-call]
    else:
        rows = rows_per_chunk(vocab, _budget(chunk_bytes, CPU_CHUNK_BYTES))
        kept = min(KEPT_CHUNKS, -(-hidden_TH.shape[0] // rows)) if _trains(*inputs[:3]) and not softcap else 0
        results = ChunkedLogProbs.apply(*inputs, rows, entropy, kept, softcap)  # type: ignore[no-untyped-call]
    return _collect(results, kept_T, tokens, entropy, lse)


def token_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    loss: TokenLoss,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    chunk_bytes: int | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, LogProbOutput]:
    """A loss that is a sum over tokens, with the log-probs (and entropies) it was computed from, detached.

    `loss(chunk, logprobs_C, entropy_C)` returns the share of the tokens `chunk` (a slice of T) as a scalar; entropy_C
    is None unless `entropy` is set. It is called once per chunk, and must not look at other tokens. The result is
    differentiable with respect to hidden, weight and bias. Other arguments as in `logprobs`; no target is ignored.

    Plain torch takes the gradient in the forward, chunk by chunk, and needs no score twice. Triton's path calls
    `logprobs` and then `loss` once, over all tokens: chunks of rows would add each one's share to a float32 [V, H],
    which for large vocabularies costs the time of the product that it saves and more memory than the goal allows.

    Raises ValueError as `logprobs`, and for a target outside the vocabulary.
    """
    _check_projection(hidden_TH, weight_VH, bias)
    tokens, vocab = hidden_TH.shape[0], weight_VH.shape[0]
    _check_targets(targets_T, tokens, vocab, None, hidden_TH.device)
    if choose_backend(backend, hidden_TH) == "triton" or not _trains(hidden_TH, weight_VH, bias):
        output = logprobs(
            hidden_TH, weight_VH, targets_T, bias=bias, temperature=temperature, softcap=softcap, entropy=entropy,
            chunk_bytes=chunk_bytes, backend=backend,
        )  # fmt: skip
        total = loss(slice(0, tokens), output.logprobs_T, output.entropy_T)
        entropy_T = None if output.entropy_T is None else output.entropy_T.detach()
        return total, LogProbOutput(output.logprobs_T.detach(), entropy_T, None)
    _check_softcap("softcap", softcap)
    inverse_temperature_T = _inverse_temperature(temperature, hidden_TH)
    rows = rows_per_chunk(vocab, _budget(chunk_bytes, CPU_CHUNK_BYTES))
    total, logprobs_T, entropy_T = ChunkedTokenLoss.apply(  # type: ignore[no-untyped-call]
        hidden_TH, weight_VH, bias, targets_T, inverse_temperature_T, loss, rows, entropy, softcap
    )
    return total, LogProbOutput(logprobs_T, entropy_T if entropy else None, None)


def kl_divergence(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    reference_TH: Tensor,
    reference_VH: Tensor,
    *,
    bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    temperature: float = 1.0,
    reference_temperature: float | None = None,
    softcap: float | None = None,
    reference_softcap: float | None = None,
    forward: bool = False,
    chunk_bytes: int | None = None,
) -> Tensor:
    """KL(π‖π_ref) over the whole vocabulary at every token, kl_T in nats, float32 (float64 for float64 inputs).

    With `forward` KL(π_ref‖π), which keeps π wherever π_ref is.

    hidden_TH, weight_VH, bias: states [T, H] and head [V, H] of π; reference_…: those of π_ref, whose hidden size may
    differ. Scores are divided by `temperature` (the reference's by `reference_temperature` where it is given) after the
    soft cap of each head, see `logprobs`. Differentiable with respect to π's states, head and bias alone.
    Plain torch on every device: two chunks of scores and a probability per score exist at a time.

    Raises ValueError naming the argument for wrong shapes, dtypes, devices or temperatures.
    """
    _check_projection(hidden_TH, weight_VH, bias)
    _check_projection(reference_TH, reference_VH, reference_bias)
    if reference_TH.shape[0] != hidden_TH.shape[0] or reference_VH.shape[0] != weight_VH.shape[0]:
        raise ValueError(
            f"reference_TH and reference_VH must have T = {hidden_TH.shape[0]} rows and V = {weight_VH.shape[0]}, "
            f"got {reference_TH.shape[0]} and {reference_VH.shape[0]}"
        )
    if reference_TH.device != hidden_TH.device:
        raise ValueError(f"reference_TH is on {reference_TH.device} and hidden_TH on {hidden_TH.device}")
    temperatures = (temperature, temperature if reference_temperature is None else reference_temperature)
    for one in temperatures:
        if not one > 0:
            raise ValueError(f"temperature must be positive, got {one}")
    softcaps = (softcap, reference_softcap)
    for name, cap in zip(("softcap", "reference_softcap"), softcaps, strict=True):
        _check_softcap(name, cap)
    default = GPU_CHUNK_BYTES if hidden_TH.is_cuda else CPU_CHUNK_BYTES
    rows = rows_per_chunk(3 * weight_VH.shape[0], _budget(chunk_bytes, default))
    kl_T: Tensor = ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        hidden_TH, weight_VH, bias, reference_TH.detach(), reference_VH.detach(), reference_bias,
        temperatures, softcaps, rows, forward,
    )  # fmt: skip
    return kl_T


def _budget(chunk_bytes: int | None, default: int) -> int:
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
    return default if chunk_bytes is None else chunk_bytes


def _trains(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)


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
        rows = rows_per_chunk(vocab, _budget(chunk_bytes, CPU_CHUNK_BYTES))
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
    targets_T: Tensor, tokens: int, vocab: int, ignore_index: int | None, device: torch.device
) -> Tensor | None:
    """Rows that are not ignored, or None when all rows count."""
    if targets_T.shape != (tokens,) or targets_T.dtype != torch.int64 or targets_T.device != device:
        raise ValueError(
            f"targets_T must be int64 [T] = [{tokens}] on {device}, got {targets_T.dtype} "
            f"{list(targets_T.shape)} on {targets_T.device}"
        )
    if tokens == 0:
        return None
    outside_T = (targets_T < 0) | (targets_T >= vocab)
    ignored_T = torch.zeros_like(outside_T) if ignore_index is None else targets_T == ignore_index
    if not (outside_T | ignored_T).any():  # the one wait for the device, unless something is ignored
        return None
    wrong_T = outside_T & ~ignored_T
    if wrong_T.any():
        marks = "" if ignore_index is None else f", and not ignore_index={ignore_index}"
        raise ValueError(f"targets_T holds {int(targets_T[wrong_T][0])}: outside the vocabulary of {vocab}{marks}")
    return (~ignored_T).nonzero()[:, 0]


def _check_softcap(name: str, softcap: float | None) -> None:
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name} must be positive, or None for no cap, got {softcap}")


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
