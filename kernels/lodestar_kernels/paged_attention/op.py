"""Checks and dispatch of paged attention: Triton on a GPU, the reference elsewhere. Inference only."""

from __future__ import annotations

import torch
from torch import Tensor

from lodestar_kernels.backend import Backend, choose_backend
from lodestar_kernels.paged_attention.layout import PagedLayout
from lodestar_kernels.paged_attention.reference import paged_attention_reference, write_kv_reference


@torch.no_grad()
def paged_attention(
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    layout: PagedLayout,
    *,
    scale: float | None = None,
    window: int | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Causal attention of new queries over their contexts in a paged cache; returns [T, N, D]. No gradient.

    q_TND: queries of all sequences end to end; caches: [blocks, block size, M, D], with the step's own keys and values
    already written (`write_kv`). Decode and chunked prefill mix freely in one call. A sequence's result does not depend
    on the others. `scale` is positive, 1/√D by default. With a `window` of w, position i sees positions j with
    i − w < j.

    Raises ValueError naming the argument for shapes, dtypes and devices that do not fit.
    """
    _check(q_TND, k_cache_PSMD, v_cache_PSMD, layout, scale, window)
    scale = q_TND.shape[2] ** -0.5 if scale is None else scale
    if choose_backend(backend, q_TND) == "triton":
        from lodestar_kernels.paged_attention.split_kv import run_paged_attention

        q_TND = q_TND if q_TND.stride(2) == 1 else q_TND.contiguous()
        return run_paged_attention(q_TND, k_cache_PSMD, v_cache_PSMD, layout, scale, window)
    return paged_attention_reference(q_TND, k_cache_PSMD, v_cache_PSMD, layout, scale, window)


@torch.no_grad()
def write_kv(
    k_TMD: Tensor,
    v_TMD: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    slots_T: Tensor,
    *,
    backend: Backend | None = None,
) -> None:
    """Write new keys and values [T, M, D] into the caches [blocks, block size, M, D], in place.

    slots_T: int64, block · block size + offset of each token; a negative slot marks a padding token, which is skipped.
    """
    expected = (k_TMD.shape[0], *k_cache_PSMD.shape[2:])
    if k_TMD.shape != expected or v_TMD.shape != expected or v_cache_PSMD.shape != k_cache_PSMD.shape:
        raise ValueError(
            f"k_TMD and v_TMD must be [T, M, D] as the caches {list(k_cache_PSMD.shape)} and "
            f"{list(v_cache_PSMD.shape)}, got {list(k_TMD.shape)} and {list(v_TMD.shape)}"
        )
    if slots_T.shape != k_TMD.shape[:1] or slots_T.dtype != torch.int64 or slots_T.device != k_TMD.device:
        raise ValueError(
            f"slots_T must be int64 [T] = [{k_TMD.shape[0]}] on {k_TMD.device}, got {slots_T.dtype} "
            f"{list(slots_T.shape)} on {slots_T.device}"
        )
    if choose_backend(backend, k_cache_PSMD) == "triton":
        from lodestar_kernels.paged_attention.split_kv import run_write

        k_TMD, v_TMD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_TMD, v_TMD))
        if len(slots_T):
            run_write(k_TMD, v_TMD, k_cache_PSMD, v_cache_PSMD, slots_T)
    else:
        write_kv_reference(k_TMD, v_TMD, k_cache_PSMD, v_cache_PSMD, slots_T)


def _check(
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    layout: PagedLayout,
    scale: float | None,
    window: int | None,
) -> None:
    if q_TND.ndim != 3 or k_cache_PSMD.ndim != 4 or k_cache_PSMD.shape != v_cache_PSMD.shape:
        raise ValueError(
            "q_TND must be [T, N, D] and both caches [blocks, block size, M, D], got "
            f"{list(q_TND.shape)}, {list(k_cache_PSMD.shape)} and {list(v_cache_PSMD.shape)}"
        )
    tokens, heads, dim = q_TND.shape
    if k_cache_PSMD.shape[3] != dim or heads % k_cache_PSMD.shape[2]:
        raise ValueError(f"q_TND {list(q_TND.shape)} does not fit the caches {list(k_cache_PSMD.shape)} in M or D")
    if k_cache_PSMD.stride(3) != 1 or v_cache_PSMD.stride(3) != 1:
        raise ValueError("the caches must be contiguous in D")
    for name, tensor in (("k_cache_PSMD", k_cache_PSMD), ("v_cache_PSMD", v_cache_PSMD)):
        if tensor.dtype != q_TND.dtype or tensor.device != q_TND.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} and q_TND is {q_TND.dtype} on {q_TND.device}"
            )
    if layout.tokens != tokens:
        raise ValueError(f"the layout holds {layout.tokens} new tokens and q_TND has {tokens}")
    if layout.block_tables_BP.device != q_TND.device:
        raise ValueError(f"the layout is on {layout.block_tables_BP.device} and q_TND on {q_TND.device}")
    if layout.max_context > layout.block_tables_BP.shape[1] * k_cache_PSMD.shape[1]:
        raise ValueError(
            f"a context of {layout.max_context} needs more than the {layout.block_tables_BP.shape[1]} blocks of "
            f"{k_cache_PSMD.shape[1]} in block_tables_BP"
        )
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
