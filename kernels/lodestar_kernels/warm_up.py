"""Compile (and, when asked, tune) the kernels a service is going to call, before its first request.

Each function runs the real operation on small random inputs of the given kind, so that Triton compiles what a later
call looks up. `tune=True` also times the candidate blocks on a problem large enough to tell them apart, and keeps the
choice for this kind of device. On a CPU there is nothing to compile, and they return at once.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from lodestar_kernels.attention import PackedLayout, attention
from lodestar_kernels.backend import Backend
from lodestar_kernels.logprob import logprobs
from lodestar_kernels.paged_attention import PagedLayout, paged_attention, write_kv
from lodestar_kernels.tuning import interpreted

TUNING_TOKENS = 16384
TUNING_CONTEXT = 4096
TUNING_SEQUENCES = 32


def _runs_triton(device: torch.device) -> bool:
    return device.type == "cuda" or interpreted()


def warm_up_logprob(
    hidden: int,
    vocab: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    train: bool,
    bias: bool = False,
    softcap: float | None = None,
) -> None:
    """Compile the log-prob kernels for a model's head, with entropy and without, at τ = 1 and other temperatures."""
    if not _runs_triton(torch.device(device)):
        return
    weight_VH = torch.randn(vocab, hidden, device=device, dtype=dtype, requires_grad=train)
    bias_V = torch.randn(vocab, device=device, dtype=dtype) if bias else None
    for entropy, temperature in product((False, True), (1.0, 0.5)):
        hidden_TH = torch.randn(64, hidden, device=device, dtype=dtype, requires_grad=train)
        targets_T = torch.zeros(64, dtype=torch.int64, device=device)
        # The smallest slices: like those of a long batch they end in one whose width no power of two divides.
        output = logprobs(
            hidden_TH, weight_VH, targets_T, bias=bias_V, temperature=temperature, softcap=softcap, entropy=entropy,
            chunk_bytes=1, backend="triton",
        )  # fmt: skip
        if train:
            total = output.logprobs_T.sum() + (output.entropy_T.sum() if output.entropy_T is not None else 0)
            torch.autograd.grad(total, (hidden_TH, weight_VH))


def warm_up_attention(
    query_heads: int,
    key_heads: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    train: bool,
    window: int | None = None,
    tune: bool = False,
) -> None:
    """Compile packed causal attention for a model's heads; the backward if `train`."""
    if not _runs_triton(torch.device(device)):
        return
    layout = PackedLayout.from_lengths([TUNING_TOKENS // 8] * 8 if tune else [100, 28], device)
    q_TND = torch.randn(layout.tokens, query_heads, dim, device=device, dtype=dtype, requires_grad=train)
    k_TMD, v_TMD = (
        torch.randn(layout.tokens, key_heads, dim, device=device, dtype=dtype, requires_grad=train) for _ in range(2)
    )
    if tune:
        detached = (q_TND.detach(), k_TMD.detach(), v_TMD.detach())
        _tune_attention(*detached, layout, window, train)
        for trains in (False, True) if train else (False,):
            _tune_backend(*detached, layout, window, trains)
    out_TND = attention(q_TND, k_TMD, v_TMD, layout=layout, window=window, backend="triton")
    if train:
        torch.autograd.grad(out_TND.sum(), (q_TND, k_TMD, v_TMD))


def _tune_attention(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PackedLayout, window: int | None, train: bool
) -> None:
    from lodestar_kernels.attention import flash

    key = flash.problem_key(q_TND, True, window is not None)
    out_TND, lse_NT = torch.empty_like(q_TND), q_TND.new_empty(q_TND.shape[1], layout.tokens, dtype=torch.float32)
    mask = (layout, True, q_TND.shape[2] ** -0.5, window)
    flash.FORWARD.tune(key, lambda b: flash.run_forward(b, q_TND, k_TMD, v_TMD, out_TND, lse_NT, *mask))
    if not train:
        return
    saved = (q_TND, k_TMD, v_TMD, out_TND, lse_NT, flash.run_delta(out_TND, out_TND))
    dk_TMD, dv_TMD, dq_TND = (torch.empty_like(x) for x in (k_TMD, v_TMD, q_TND))
    flash.KEY_GRADIENT.tune(key, lambda b: flash.run_key_gradient(b, *saved, dk_TMD, dv_TMD, *mask))
    flash.QUERY_GRADIENT.tune(key, lambda b: flash.run_query_gradient(b, *saved, dq_TND, *mask))


def _tune_backend(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, layout: PackedLayout, window: int | None, trains: bool
) -> None:
    from lodestar_kernels.attention import flash

    q_TND, k_TMD, v_TMD = (x.detach().requires_grad_(trains) for x in (q_TND, k_TMD, v_TMD))

    def step(backend: Backend) -> None:
        out_TND = attention(q_TND, k_TMD, v_TMD, layout=layout, window=window, backend=backend)
        if trains:
            torch.autograd.grad(out_TND, (q_TND, k_TMD, v_TMD), torch.ones_like(out_TND))

    flash.BACKEND.tune(flash.backend_key(q_TND, True, window is not None, trains), step)


def warm_up_paged_attention(
    query_heads: int,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    *,
    window: int | None = None,
    tune: bool = False,
) -> None:
    """Compile decode, chunked prefill and cache writes for the engine's own caches; their contents are not kept."""
    if not _runs_triton(k_cache_PSMD.device):
        return
    page, key_heads, dim = k_cache_PSMD.shape[1:]
    device, dtype = k_cache_PSMD.device, k_cache_PSMD.dtype
    context = min(TUNING_CONTEXT if tune else 100, k_cache_PSMD.shape[0] * page)
    pages = -(-context // page)
    new_TMD = torch.randn(2, key_heads, dim, device=device, dtype=dtype)
    write_kv(new_TMD, new_TMD, k_cache_PSMD, v_cache_PSMD, torch.arange(2, device=device), backend="triton")
    for sequences, queries in ((TUNING_SEQUENCES if tune else 2, 1), (1, context)):
        # Pages of their own as far as there are any: shared ones would be timed in the cache of the device.
        blocks = torch.arange(sequences * pages, dtype=torch.int32, device=device) % k_cache_PSMD.shape[0]
        tables_BP = blocks.view(sequences, pages)
        layout = PagedLayout.from_lengths([queries] * sequences, [context] * sequences, tables_BP)
        q_TND = torch.randn(layout.tokens, query_heads, dim, device=device, dtype=dtype)
        if tune:
            _tune_paged_attention(q_TND, k_cache_PSMD, v_cache_PSMD, layout, window, decode=queries == 1)
        paged_attention(q_TND, k_cache_PSMD, v_cache_PSMD, layout, window=window, backend="triton")


def _tune_paged_attention(
    q_TND: Tensor, k_cache_PSMD: Tensor, v_cache_PSMD: Tensor, layout: PagedLayout, window: int | None, decode: bool
) -> None:
    from lodestar_kernels.paged_attention import split_kv

    tuner, run = (split_kv.DECODE, split_kv.run_decode) if decode else (split_kv.PREFILL, split_kv.run_prefill)
    out_TND = torch.empty_like(q_TND)
    inputs = (q_TND, k_cache_PSMD, v_cache_PSMD, out_TND, layout, q_TND.shape[2] ** -0.5, window)
    tuner.tune(split_kv.problem_key(q_TND, k_cache_PSMD, window), lambda blocks: run(blocks, *inputs))
