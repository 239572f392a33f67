"""The GPU path of packed attention: launches of the Triton kernels behind one autograd function."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from lodestar_kernels.attention.kernel import (
    attention_forward,
    attention_key_gradient,
    attention_query_gradient,
    output_dot_gradient,
)
from lodestar_kernels.attention.layout import PackedLayout
from lodestar_kernels.backend import Backend
from lodestar_kernels.tuning import Blocks, Key, Tuner, interpreted

LOG2_E = math.log2(math.e)
# Of float32 products: three tf32 products each, close to float32. float16 and bfloat16 have one way only.
PRECISION = "tf32x3"


def problem_key(q_TND: Tensor, causal: bool, windowed: bool) -> Key:
    """What the best blocks depend on: head dimension, bytes per element, and the mask."""
    return (q_TND.shape[2], q_TND.element_size(), causal, windowed)


def backend_key(q_TND: Tensor, causal: bool, windowed: bool, trains: bool) -> Key:
    """What the faster implementation depends on: the problem, and whether a backward follows."""
    return (*problem_key(q_TND, causal, windowed), trains)


def padded_dim(dim: int) -> int:
    """Head dimension as the kernels hold it: a power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


# The 16-bit defaults compile for sm_90 without register spills, float32 ones with up to 556 bytes (head dimension 256;
# benchmarks/kernels/compile_sm90.py). Their order is a guess until a GPU has measured it.
def forward_candidates(key: Key) -> list[Blocks]:
    """Tiles of queries × blocks of keys for the forward."""
    dim, size, windowed = padded_dim(int(key[0])), key[1], key[3]
    if interpreted():
        return [Blocks(32, 32)]
    if size == 4:
        return {128: [Blocks(16, 32, 4, 1)], 256: [Blocks(16, 16, 8, 2)]}.get(dim, [Blocks(64, 32, 4, 2)])
    if dim == 256:
        return (
            [Blocks(64, 32, 8, 2), Blocks(64, 32, 4, 2), Blocks(32, 16, 4, 2)]
            if windowed
            else [Blocks(128, 32, 8, 2), Blocks(64, 32, 4, 2), Blocks(32, 16, 4, 2)]
        )
    if dim == 128:
        # Twice the keys per step halve the rescaling of the output, which is half of what a step computes.
        wide = [] if windowed else [Blocks(128, 128, 8, 2), Blocks(128, 128, 8, 3)]
        return [*wide, Blocks(128, 64, 8, 2 if windowed else 3), Blocks(128, 32, 8, 3), Blocks(64, 32, 4, 2)]
    return [Blocks(128, 64, 8, 3), Blocks(128, 128, 8, 2), Blocks(64, 64, 4, 3), Blocks(64, 32, 4, 2)]


def key_gradient_candidates(key: Key) -> list[Blocks]:
    """Blocks of queries × tiles of keys for dK and dV."""
    dim, size = padded_dim(int(key[0])), key[1]
    if interpreted():
        return [Blocks(32, 32)]
    if size == 4:
        return [Blocks(16, 16, 8, 1)] if dim >= 128 else [Blocks(32, 32, 4, 1)]
    if dim == 256:
        return [Blocks(32, 32, 8, 2), Blocks(16, 32, 8, 2), Blocks(16, 32, 8, 1)]
    if dim == 128:
        # Masking a padded dimension or a window costs the last registers.
        whole = [Blocks(32, 128, 8, 2)] if key[0] == 128 and not key[3] else []
        return [*whole, Blocks(16, 128, 8, 2), Blocks(32, 128, 8, 1)]
    return [Blocks(32, 128, 8, 2), Blocks(32, 64, 4, 2), Blocks(16, 128, 8, 2)]


def query_gradient_candidates(key: Key) -> list[Blocks]:
    """Tiles of queries × blocks of keys for dQ."""
    dim, size = padded_dim(int(key[0])), key[1]
    if interpreted():
        return [Blocks(32, 32)]
    if size == 4:
        return {128: [Blocks(16, 32, 8, 1)], 256: [Blocks(16, 16, 8, 1)]}.get(dim, [Blocks(32, 32, 4, 1)])
    if dim == 256:
        wide = [] if key[3] else [Blocks(64, 32, 8, 2)]
        return [*wide, Blocks(64, 16, 8, 2), Blocks(32, 16, 8, 1)]
    return [Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(128, 32, 8, 3), Blocks(64, 32, 4, 2)]


BACKEND: Tuner[Backend] = Tuner("attention-backend", lambda _: ("triton", "torch"))
"""Ours or torch's FlashAttention-2, whichever the warm-up found faster; see `backend_key`."""
FORWARD = Tuner("attention-forward", forward_candidates)
KEY_GRADIENT = Tuner("attention-key-gradient", key_gradient_candidates)
QUERY_GRADIENT = Tuner("attention-query-gradient", query_gradient_candidates)


class FlashAttention(torch.autograd.Function):
    """Packed attention; deterministic, and a sequence's result does not depend on the others in the batch."""

    @staticmethod
    def forward(
        ctx: Any,
        q_TND: Tensor,
        k_TMD: Tensor,
        v_TMD: Tensor,
        layout: PackedLayout,
        causal: bool,
        scale: float,
        window: int | None,
    ) -> Tensor:
        q_TND, k_TMD, v_TMD = (_rows_contiguous(x) for x in (q_TND, k_TMD, v_TMD))
        out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
        lse_NT = q_TND.new_empty(q_TND.shape[1], q_TND.shape[0], dtype=torch.float32)
        arguments = (q_TND, k_TMD, v_TMD, out_TND, lse_NT, layout, causal, scale, window)
        FORWARD.launch(problem_key(q_TND, causal, window is not None), lambda blocks: run_forward(blocks, *arguments))
        ctx.save_for_backward(q_TND, k_TMD, v_TMD, out_TND, lse_NT)
        ctx.layout, ctx.causal, ctx.scale, ctx.window = layout, causal, scale, window
        return out_TND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TND: Tensor) -> tuple[Tensor | None, ...]:
        q_TND, k_TMD, v_TMD, out_TND, lse_NT = ctx.saved_tensors
        grad_TND = _rows_contiguous(grad_TND)
        key = problem_key(q_TND, ctx.causal, ctx.window is not None)
        delta_NT = run_delta(out_TND, grad_TND)
        saved = (q_TND, k_TMD, v_TMD, grad_TND, lse_NT, delta_NT)
        mask = (ctx.layout, ctx.causal, ctx.scale, ctx.window)
        dk_TMD, dv_TMD = (torch.empty(k_TMD.shape, dtype=k_TMD.dtype, device=k_TMD.device) for _ in range(2))
        KEY_GRADIENT.launch(key, lambda blocks: run_key_gradient(blocks, *saved, dk_TMD, dv_TMD, *mask))
        dq_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
        QUERY_GRADIENT.launch(key, lambda blocks: run_query_gradient(blocks, *saved, dq_TND, *mask))
        return dq_TND, dk_TMD, dv_TMD, None, None, None, None


def run_forward(
    blocks: Blocks,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    out_TND: Tensor,
    lse_NT: Tensor,
    layout: PackedLayout,
    causal: bool,
    scale: float,
    window: int | None,
) -> None:
    """Launch the forward with the given blocks."""
    tiles = layout.tiles(blocks.rows, causal)
    attention_forward[(len(tiles), q_TND.shape[1])](
        q_TND, k_TMD, v_TMD, out_TND, lse_NT, layout.cu_seqlens, tiles,
        *_strides(q_TND, k_TMD, v_TMD, out_TND), layout.tokens, scale * LOG2_E, window or 0,
        **_constants(blocks, q_TND, k_TMD, causal, window),
    )  # fmt: skip


def run_delta(out_TND: Tensor, grad_TND: Tensor) -> Tensor:
    """Σ_d out · dout, float32 [N, T]."""
    tokens, heads, dim = out_TND.shape
    delta_NT = out_TND.new_empty(heads, tokens, dtype=torch.float32)
    block = 32 if interpreted() else 64
    output_dot_gradient[(triton.cdiv(tokens, block), heads)](
        out_TND, grad_TND, delta_NT, *_strides(out_TND, grad_TND), tokens,
        D=dim, BLOCK_D=padded_dim(dim), BLOCK_M=block,
    )  # fmt: skip
    return delta_NT


def run_key_gradient(
    blocks: Blocks,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    grad_TND: Tensor,
    lse_NT: Tensor,
    delta_NT: Tensor,
    dk_TMD: Tensor,
    dv_TMD: Tensor,
    layout: PackedLayout,
    causal: bool,
    scale: float,
    window: int | None,
) -> None:
    """Launch the kernel of dK and dV with the given blocks."""
    tiles = layout.tiles(blocks.columns, causal, of_keys=True)
    attention_key_gradient[(len(tiles), k_TMD.shape[1])](
        q_TND, k_TMD, v_TMD, grad_TND, lse_NT, delta_NT, dk_TMD, dv_TMD, layout.cu_seqlens, tiles,
        *_strides(q_TND, k_TMD, v_TMD, grad_TND, dk_TMD), layout.tokens, scale, scale * LOG2_E, window or 0,
        **_constants(blocks, q_TND, k_TMD, causal, window),
    )  # fmt: skip


def run_query_gradient(
    blocks: Blocks,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    grad_TND: Tensor,
    lse_NT: Tensor,
    delta_NT: Tensor,
    dq_TND: Tensor,
    layout: PackedLayout,
    causal: bool,
    scale: float,
    window: int | None,
) -> None:
    """Launch the kernel of dQ with the given blocks."""
    tiles = layout.tiles(blocks.rows, causal)
    attention_query_gradient[(len(tiles), q_TND.shape[1])](
        q_TND, k_TMD, v_TMD, grad_TND, lse_NT, delta_NT, dq_TND, layout.cu_seqlens, tiles,
        *_strides(q_TND, k_TMD, v_TMD, grad_TND, dq_TND), layout.tokens, scale, scale * LOG2_E, window or 0,
        **_constants(blocks, q_TND, k_TMD, causal, window),
    )  # fmt: skip


def _constants(blocks: Blocks, q_TND: Tensor, k_TMD: Tensor, causal: bool, window: int | None) -> dict[str, Any]:
    dim = q_TND.shape[2]
    return {
        "GROUP": q_TND.shape[1] // k_TMD.shape[1],
        "D": dim,
        "BLOCK_D": padded_dim(dim),
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.columns,
        "CAUSAL": causal,
        "WINDOWED": window is not None,
        "PRECISION": PRECISION,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _strides(*packed: Tensor) -> list[int]:
    return [stride for tensor in packed for stride in tensor.stride()[:2]]


def _rows_contiguous(x_TND: Tensor) -> Tensor:
    """The kernels take any strides of tokens and heads, but rows of D in one piece."""
    return x_TND if x_TND.stride(2) == 1 else x_TND.contiguous()
