"""Paged attention under Triton against plain torch, over caches whose unused slots are poisoned."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lodestar_kernels.attention.reference import dense_attention
from lodestar_kernels.paged_attention import PagedLayout, paged_attention, split_kv, write_kv
from torch import Tensor

BACKENDS = ("torch", "triton")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Step(NamedTuple):
    """One step of a batch over a cache."""

    q_TND: Tensor
    k_cache_PSMD: Tensor
    v_cache_PSMD: Tensor
    layout: PagedLayout


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small contexts then have several splits."""
    monkeypatch.setattr(split_kv, "SPLIT", 64)


def step(
    queries: tuple[int, ...], contexts: tuple[int, ...], heads: tuple[int, int] = (4, 2), dim: int = 16,
    page: int = 16, dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> Step:  # fmt: skip
    """Random queries and contexts on shuffled pages; whatever no sequence uses is NaN."""
    torch.manual_seed(sum(queries) * 31 + sum(contexts))
    pages = max(1, max(-(-context // page) for context in contexts))
    blocks = len(contexts) * pages + 2
    tables_BP = torch.randperm(blocks)[: len(contexts) * pages].view(len(contexts), pages).int()
    caches = torch.full((2, blocks, page, heads[1], dim), float("nan"), dtype=dtype)
    for table_P, context in zip(tables_BP, contexts, strict=True):
        slots_S = (table_P.long()[:, None] * page + torch.arange(page)).flatten()[:context]
        write_kv(*torch.randn(2, context, heads[1], dim).to(dtype), *caches, slots_S, backend="torch")
    q_TND = torch.randn(sum(queries), heads[0], dim).to(device, dtype)
    return Step(q_TND, *caches.to(device), PagedLayout.from_lengths(queries, contexts, tables_BP.to(device)))


def assert_triton_equals_torch(batch: Step, **options: Any) -> Tensor:
    out_TND = paged_attention(*batch, backend="triton", **options)
    expected_TND = paged_attention(*(x.double() for x in batch[:3]), batch.layout, backend="torch", **options)
    tolerance = TOLERANCE[batch.q_TND.dtype]
    torch.testing.assert_close(out_TND.double(), expected_TND, atol=tolerance, rtol=tolerance)
    return out_TND


def test_the_reference_attends_to_the_gathered_context() -> None:
    batch = step((5, 33), (5, 33))
    short_P, long_P = batch.layout.block_tables_BP.long()
    k_TMD, v_TMD = (
        torch.cat([cache[short_P].flatten(0, 1)[:5], cache[long_P].flatten(0, 1)[:33]]) for cache in batch[1:3]
    )
    expected = dense_attention(batch.q_TND, k_TMD, v_TMD, (5, 33), causal=True, scale=0.25, window=7)
    torch.testing.assert_close(paged_attention(*batch, window=7), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 10, 100])
def test_decode_and_chunked_prefill_mix_in_one_step(window: int | None, device: str) -> None:
    batch = step((1, 1, 0, 1, 20, 2), (1, 130, 7, 65, 80, 64), device=device)
    assert_triton_equals_torch(batch, window=window)


@pytest.mark.parametrize("heads", [(1, 1), (6, 1), (7, 1), (40, 2)], ids=str)
def test_groups_of_any_size_share_their_keys(heads: tuple[int, int], device: str) -> None:
    assert_triton_equals_torch(step((1, 17), (70, 33), heads, page=8, device=device))


@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 128, 256])
def test_head_dimensions_equal_the_reference_in_half_precision(dim: int, device: str) -> None:
    assert_triton_equals_torch(step((1, 20), (20, 30), (2, 1), dim, 32, torch.float16, device))


def test_a_sequence_has_the_same_bits_in_any_batch(device: str) -> None:
    queries, contexts = (1, 20, 1, 3), (150, 60, 65, 129)
    batch = step(queries, contexts, device=device)
    together = paged_attention(*batch, backend="triton")
    start = 0
    for i, count in enumerate(queries):
        layout = PagedLayout.from_lengths((count,), (contexts[i],), batch.layout.block_tables_BP[i : i + 1])
        rows = slice(start, start + count)
        assert torch.equal(paged_attention(batch.q_TND[rows], *batch[1:3], layout, backend="triton"), together[rows])
        start += count


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layout_made_for_a_graph_covers_shorter_and_empty_contexts(backend: str, device: str) -> None:
    batch = step((1, 1, 1), (100, 70, 1), device=device)
    tables_BP = batch.layout.block_tables_BP
    captured = PagedLayout.from_lengths((1, 1, 1), (1, 1, 1), tables_BP, max_context=tables_BP.shape[1] * 16)
    captured.context_lengths_B.copy_(torch.tensor([100, 70, 0]))
    out_TND = paged_attention(*batch[:3], captured, backend=backend)
    expected_TND = paged_attention(*batch, backend="torch")
    torch.testing.assert_close(out_TND[:2], expected_TND[:2], atol=2e-5, rtol=1e-4)
    assert (out_TND[2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_writes_land_in_their_slots_and_nowhere_else(backend: str, device: str) -> None:
    caches = torch.full((2, 5, 8, 3, 20), float("nan"), device=device)
    k_TMD, v_TMD = torch.randn(2, 4, 3, 20, device=device)
    slots = [17, -1, 0, 39]
    write_kv(k_TMD, v_TMD, *caches, torch.tensor(slots, device=device), backend=backend)
    for cache, new in zip(caches, (k_TMD, v_TMD), strict=True):
        flat = cache.flatten(0, 1)
        for token in (0, 2, 3):
            assert torch.equal(flat[slots[token]], new[token])
        assert int(flat.isnan().all(-1).all(-1).sum()) == 40 - 3


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_random_steps_equal_the_reference(data: st.DataObject) -> None:
    contexts = tuple(data.draw(st.lists(st.integers(1, 140), min_size=1, max_size=3)))
    queries = tuple(data.draw(st.integers(0, min(context, 24))) for context in contexts)
    group, key_heads = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    page, window = data.draw(st.sampled_from([1, 5, 16, 64])), data.draw(st.none() | st.integers(1, 150))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = step(queries, contexts, (group * key_heads, key_heads), data.draw(st.integers(1, 40)), page, device=device)
    assert_triton_equals_torch(batch, window=window)


@pytest.mark.parametrize(
    ("queries", "contexts", "tables", "message"),
    [
        ((1,), (1, 2), torch.zeros(1, 1, dtype=torch.int32), "agree in B"),
        ((1,), (1,), torch.zeros(1, 1, dtype=torch.int64), "int32"),
        ((3,), (2,), torch.zeros(1, 1, dtype=torch.int32), "sequence 0 has 3 new tokens"),
    ],
)
def test_bad_layouts_are_named(
    queries: tuple[int, ...], contexts: tuple[int, ...], tables: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PagedLayout.from_lengths(queries, contexts, tables)


def test_bad_arguments_are_named() -> None:
    q_TND, k_cache, v_cache, layout = step((2,), (20,))
    for arguments, message in (
        ((q_TND[0], k_cache, v_cache, layout), "q_TND"),
        ((q_TND[:, :3], k_cache, v_cache, layout), "M or D"),
        ((q_TND, k_cache.double(), v_cache, layout), "k_cache_PSMD is torch.float64"),
        ((q_TND[:1], k_cache, v_cache, layout), "2 new tokens"),
        ((q_TND, k_cache[:, :4], v_cache[:, :4], layout), "needs more than"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_attention(*arguments)
    with pytest.raises(ValueError, match="window"):
        paged_attention(q_TND, k_cache, v_cache, layout, window=0)
    with pytest.raises(ValueError, match="slots_T"):
        write_kv(torch.zeros(1, 2, 16), torch.zeros(1, 2, 16), k_cache, v_cache, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="k_TMD"):
        write_kv(torch.zeros(1, 3, 16), torch.zeros(1, 3, 16), k_cache, v_cache, torch.zeros(1, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256])
def test_gpu_dtypes_equal_the_reference(dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_kv, "SPLIT", 512)
    batch = step((1, 1, 300, 2, 1), (5000, 1, 700, 513, 512), (8, 2), dim, 16, dtype, "cuda")
    assert_triton_equals_torch(batch)
    assert_triton_equals_torch(batch, window=600)


@pytest.mark.gpu
def test_a_captured_graph_follows_its_contexts() -> None:
    batch = step((1, 1), (90, 40), device="cuda")
    tables_BP = batch.layout.block_tables_BP
    captured = PagedLayout.from_lengths((1, 1), (1, 1), tables_BP, max_context=tables_BP.shape[1] * 16)
    paged_attention(*batch[:3], captured)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_TND = paged_attention(*batch[:3], captured)
    captured.context_lengths_B.copy_(batch.layout.context_lengths_B)
    graph.replay()
    torch.testing.assert_close(out_TND, paged_attention(*batch, backend="torch"), atol=1e-4, rtol=1e-4)
