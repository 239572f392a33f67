"""Checks and dispatch of packed attention: Triton on a GPU, the reference elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar_kernels.attention.layout import PackedLayout
from lodestar_kernels.attention.reference import packed_attention, takes_varlen
from lodestar_kernels.attention.scored import packed_scored_attention
from lodestar_kernels.backend import Backend, choose_backend


def attention(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    *,
    layout: PackedLayout | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_N: Tensor | None = None,
    per_sequence: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """Attention within each of the sequences packed end to end; returns [T, N, D] in the dtype of q_TND.

    q_TND: queries [T, N, D]; k_TMD, v_TMD: keys and values [T, M, D] with N a multiple of M (grouped-query).
    The boundaries are `cu_seqlens` (int32 [B + 1]) with `max_seqlen`, or a `layout` that the caller built once per
    batch, which saves every layer from deriving it. `scale` is positive, 1/√D by default. With a `window` of w,
    position i sees positions j with i − w < j, and j < i + w when attention is not causal. `per_sequence` computes each
    sequence alone at its exact length, so that its bits do not depend on the rest of the batch; the Triton path always
    works that way, and its backward is deterministic.

    `softcap` caps the scores and `sinks_N` gives every head a logit that takes its share of the weights and has no
    value (see scored.py); with either, plain torch computes one sequence after the other on every device.

    backend: "triton" (float16, bfloat16, float32, D up to 256) or "torch" (on a CPU scaled_dot_product_attention and
    batched products; on a GPU FlashAttention-2 over packed sequences, where torch has it). By default torch on a CPU
    and, on a GPU, the one that `warm_up_attention(tune=True)` measured to be faster there, else Triton.

    Raises ValueError naming the argument for shapes, dtypes, devices and boundaries that do not fit.
    """
    if layout is None:
        if cu_seqlens is None:
            raise ValueError("attention needs cu_seqlens or layout")
        layout = PackedLayout.from_cu_seqlens(cu_seqlens)
    _check(q_TND, k_TMD, v_TMD, layout, max_seqlen, scale, window)
    scale = q_TND.shape[2] ** -0.5 if scale is None else scale
    if softcap is not None or sinks_N is not None:
        _check_scores(q_TND, softcap, sinks_N, backend)
        if not layout.tokens:
            return torch.zeros_like(q_TND)
        return packed_scored_attention(
            q_TND, k_TMD, v_TMD, layout, causal=causal, scale=scale, window=window, softcap=softcap, sinks_N=sinks_N
        )
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q_TND, k_TMD, v_TMD))
    if _backend(backend, q_TND, causal, window, trains, per_sequence) == "triton" and layout.tokens:
        from lodestar_kernels.attention.flash import FlashAttention

        _check_triton(q_TND, k_TMD, v_TMD, layout)
        out_TND: Tensor = FlashAttention.apply(  # type: ignore[no-untyped-call]
            q_TND, k_TMD, v_TMD, layout, causal, scale, window
        )
        return out_TND
    return packed_attention(
        q_TND, k_TMD, v_TMD, layout, causal=causal, scale=scale, window=window, per_sequence=per_sequence
    )


def _backend(
    asked: Backend | None, q_TND: Tensor, causal: bool, window: int | None, trains: bool, per_sequence: bool
) -> Backend:
    """Triton where it may run, unless torch was measured to be faster on this device and nobody asked.

    torch's backward adds up in any order, and its forward may depend on the batch: not where that matters.
    """
    chosen = choose_backend(asked, q_TND)
    exact = per_sequence or torch.are_deterministic_algorithms_enabled()
    if asked is not None or chosen == "torch" or exact or not takes_varlen(q_TND):
        return chosen
    from lodestar_kernels.attention.flash import BACKEND, backend_key

    return BACKEND.choose(backend_key(q_TND, causal, window is not None, trains))


def _check(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    layout: PackedLayout,
    max_seqlen: int | None,
    scale: float | None,
    window: int | None,
) -> None:
    if q_TND.ndim != 3 or k_TMD.ndim != 3:
        raise ValueError(f"q_TND and k_TMD must be [T, heads, D], got {list(q_TND.shape)} and {list(k_TMD.shape)}")
    tokens, query_heads, dim = q_TND.shape
    key_heads = k_TMD.shape[1]
    if k_TMD.shape != v_TMD.shape or k_TMD.shape[0] != tokens or k_TMD.shape[2] != dim:
        raise ValueError(
            f"k_TMD and v_TMD must be [T, M, D] with T = {tokens} and D = {dim}, "
            f"got {list(k_TMD.shape)} and {list(v_TMD.shape)}"
        )
    if key_heads == 0 or query_heads % key_heads:
        raise ValueError(f"query heads must be a multiple of key/value heads, got {query_heads} and {key_heads}")
    for name, tensor in (("k_TMD", k_TMD), ("v_TMD", v_TMD)):
        if tensor.dtype != q_TND.dtype or tensor.device != q_TND.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} and q_TND is {q_TND.dtype} on {q_TND.device}"
            )
    if layout.tokens != tokens:
        raise ValueError(f"the layout holds {layout.tokens} tokens and q_TND has {tokens}")
    if max_seqlen is not None and max_seqlen < layout.max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen} and the longest sequence has {layout.max_seqlen} tokens")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")


def _check_scores(q_TND: Tensor, softcap: float | None, sinks_N: Tensor | None, backend: Backend | None) -> None:
    if backend == "triton":
        raise ValueError("the Triton kernel computes no softcap and no sinks_N: leave the backend out")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    if sinks_N is not None and sinks_N.shape != q_TND.shape[1:2]:
        raise ValueError(f"sinks_N must be [N] = [{q_TND.shape[1]}], got {list(sinks_N.shape)}")


def _check_triton(q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PackedLayout) -> None:
    if q_TND.shape[2] > 256:
        raise ValueError(
            f"the Triton kernel takes head dimensions up to 256, got {q_TND.shape[2]}: use backend='torch'"
        )
    if layout.cu_seqlens.device != q_TND.device:
        raise ValueError(f"the layout is on {layout.cu_seqlens.device} and q_TND on {q_TND.device}")
    rows = max(x.stride(0) for x in (q_TND, k_TMD, v_TMD)), q_TND.shape[1] * q_TND.shape[2]
    if layout.max_seqlen * max(rows) >= 2**31:
        raise ValueError(
            f"a sequence of {layout.max_seqlen} tokens, {max(rows)} numbers apart, passes the kernel's 32-bit offsets"
        )
