"""Packed attention against a float64 oracle: both backends, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lodestar_kernels.attention import PackedLayout, attention
from lodestar_kernels.attention.layout import GROUPED_LENGTH
from lodestar_kernels.attention.reference import dense_attention
from torch import Tensor

BACKENDS = ("torch", "triton")
TOLERANCE = {torch.float32: (2e-5, 1e-4), torch.float16: (5e-3, 5e-3), torch.bfloat16: (4e-2, 4e-2)}
LENGTHS = (3, 0, 1, 45, 64)


def problem(
    lengths: tuple[int, ...], heads: tuple[int, int], dim: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Queries, keys, values and an upstream gradient."""
    torch.manual_seed(sum(lengths) * 31 + dim)
    shapes = ((heads[0], dim), (heads[1], dim), (heads[1], dim), (heads[0], dim))
    return [torch.randn(sum(lengths), *shape).to(device, dtype) for shape in shapes]


def assert_matches_oracle(
    lengths: tuple[int, ...],
    heads: tuple[int, int],
    dim: int,
    backend: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    **options: Any,
) -> None:
    """Output and gradients against float64."""
    *inputs, upstream = problem(lengths, heads, dim, dtype, device)
    inputs = [x.requires_grad_() for x in inputs]
    layout = PackedLayout.from_lengths(lengths, device)
    out_TND = attention(*inputs, layout=layout, causal=causal, window=window, scale=scale, backend=backend, **options)
    assert out_TND.dtype == dtype
    exact = [x.detach().double().requires_grad_() for x in inputs]
    scale = dim**-0.5 if scale is None else scale
    expected_TND = dense_attention(*exact, lengths, causal=causal, scale=scale, window=window)
    atol, rtol = TOLERANCE[dtype]
    torch.testing.assert_close(out_TND.double(), expected_TND, atol=atol, rtol=rtol)
    gradients = torch.autograd.grad(out_TND, inputs, upstream)
    for got, wanted in zip(gradients, torch.autograd.grad(expected_TND, exact, upstream.double()), strict=True):
        magnitude = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(got.double() / magnitude, wanted / magnitude, atol=atol, rtol=rtol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("window", [None, 1, 9, 40, 500])
def test_masks_equal_the_oracle(backend: str, causal: bool, window: int | None, device: str) -> None:
    assert_matches_oracle(LENGTHS, (2, 1), 16, backend, device, causal=causal, window=window)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 128, 256])
def test_head_dimensions_equal_the_oracle(backend: str, dim: int, device: str) -> None:
    assert_matches_oracle((5, 40, 1), (2, 1), dim, backend, device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (6, 2), (5, 1)], ids=str)
def test_grouped_heads_equal_the_oracle(backend: str, heads: tuple[int, int], device: str) -> None:
    assert_matches_oracle((5, 33), heads, 8, backend, device, scale=0.3)


@pytest.mark.parametrize("window", [None, 37, 400])
@pytest.mark.parametrize("per_sequence", [True, False])
def test_long_and_short_sequences_mix_on_a_cpu(window: int | None, per_sequence: bool) -> None:
    lengths = (300, 5, 0, GROUPED_LENGTH, 30, 513)
    assert_matches_oracle(lengths, (4, 2), 8, "torch", "cpu", window=window, per_sequence=per_sequence)


def test_half_precision_equals_the_oracle_under_triton(device: str) -> None:
    assert_matches_oracle((70, 13), (2, 1), 64, "triton", device, dtype=torch.float16)


@pytest.mark.parametrize("lengths", [(6, 3), (2, 300)], ids=["grouped", "mixed"])
def test_gradients_pass_gradcheck_in_float64(lengths: tuple[int, ...]) -> None:
    *inputs, _ = problem(lengths, (2, 1), 4, torch.float64, "cpu")
    layout = PackedLayout.from_lengths(lengths)
    inputs = [x.requires_grad_() for x in inputs]
    torch.autograd.gradcheck(lambda *qkv: attention(*qkv, layout=layout), inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_ten_thousand_neither_overflow_nor_leak(backend: str, device: str) -> None:
    lengths = (40, 7)
    q_TND, k_TMD, v_TMD, upstream = problem(lengths, (2, 2), 16, torch.float32, device)
    inputs = [x.requires_grad_() for x in (q_TND * 100, k_TMD * 100, v_TMD)]
    layout = PackedLayout.from_lengths(lengths, device)
    out_TND = attention(*inputs, layout=layout, scale=1.0, backend=backend)
    expected = dense_attention(*(x.detach().double() for x in inputs), lengths, causal=True, scale=1.0, window=None)
    torch.testing.assert_close(out_TND.double(), expected, atol=2e-2, rtol=2e-2)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out_TND, inputs, upstream))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_one_sequence_stays_there(backend: str, device: str) -> None:
    lengths = (20, 19, 18)
    *inputs, upstream = problem(lengths, (2, 1), 16, torch.float32, device)
    for x in inputs:
        x[20:39] = float("nan")
    inputs = [x.requires_grad_() for x in inputs]
    out_TND = attention(*inputs, layout=PackedLayout.from_lengths(lengths, device), backend=backend)
    others = [*range(20), *range(39, 57)]
    for result in (out_TND, *torch.autograd.grad(out_TND, inputs, upstream)):
        assert result[others].isfinite().all()
        assert not result[25].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_computed_alone_has_the_same_bits(backend: str, device: str) -> None:
    lengths = (40, 3, 41, 44)
    *inputs, upstream = problem(lengths, (4, 2), 16, torch.float32, device)
    inputs = [x.requires_grad_() for x in inputs]

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, of: tuple[int, ...]) -> list[Tensor]:
        layout = PackedLayout.from_lengths(of, device)
        out = attention(q, k, v, layout=layout, per_sequence=True, backend=backend)
        return [out, *torch.autograd.grad(out, (q, k, v), g)]

    together = run(*inputs, upstream, lengths)
    for start, length in zip((0, 40, 43, 84), lengths, strict=True):
        rows = slice(start, start + length)
        alone = run(*(x.detach()[rows].clone().requires_grad_() for x in inputs), upstream[rows], (length,))
        assert all(torch.equal(whole[rows], part) for whole, part in zip(together, alone, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_queries_from_a_fused_projection_are_read_in_place(backend: str, device: str) -> None:
    lengths = (9, 20)
    fused_TXD = torch.randn(29, 8, 16, device=device, requires_grad=True)
    q_TND, k_TMD, v_TMD = fused_TXD.split([4, 2, 2], dim=1)
    layout = PackedLayout.from_lengths(lengths, device)
    out_TND = attention(q_TND, k_TMD, v_TMD, layout=layout, backend=backend)
    exact_TXD = fused_TXD.detach().double().requires_grad_()
    expected = dense_attention(*exact_TXD.split([4, 2, 2], dim=1), lengths, causal=True, scale=0.25, window=None)
    torch.testing.assert_close(out_TND.double(), expected, atol=2e-5, rtol=1e-4)
    gradient = torch.autograd.grad(out_TND.sin().sum(), fused_TXD)[0]
    wanted = torch.autograd.grad(expected.sin().sum(), exact_TXD)[0]
    torch.testing.assert_close(gradient.double(), wanted, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)], ids=str)
def test_no_tokens_give_an_empty_output_with_gradients(backend: str, lengths: tuple[int, ...], device: str) -> None:
    *inputs, upstream = problem(lengths, (2, 1), 16, torch.float32, device)
    inputs = [x.requires_grad_() for x in inputs]
    out_TND = attention(*inputs, layout=PackedLayout.from_lengths(lengths, device), backend=backend)
    assert out_TND.shape == (0, 2, 16)
    assert [g.shape for g in torch.autograd.grad(out_TND, inputs, upstream)] == [x.shape for x in inputs]


def test_cu_seqlens_and_a_layout_say_the_same(device: str) -> None:
    q_TND, k_TMD, v_TMD, _ = problem((4, 6), (2, 2), 8, torch.float32, device)
    layout = PackedLayout.from_lengths((4, 6), device)
    cu_seqlens = torch.tensor([0, 4, 10], dtype=torch.int32, device=device)
    assert torch.equal(attention(q_TND, k_TMD, v_TMD, cu_seqlens, 6), attention(q_TND, k_TMD, v_TMD, layout=layout))


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=3).filter(any).map(tuple),
    group=st.integers(1, 3), key_heads=st.integers(1, 2), dim=st.integers(1, 40), causal=st.booleans(),
    window=st.none() | st.integers(1, 80), backend=st.sampled_from(BACKENDS),
)  # fmt: skip
def test_random_shapes_equal_the_oracle(
    lengths: tuple[int, ...], group: int, key_heads: int, dim: int, causal: bool, window: int | None, backend: str
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads = (group * key_heads, key_heads)
    assert_matches_oracle(lengths, heads, dim, backend, device, causal=causal, window=window)


@given(lengths=st.lists(st.integers(0, 400), max_size=8).map(tuple), block=st.sampled_from([16, 64]))
def test_tiles_and_groups_cover_every_position_once(lengths: tuple[int, ...], block: int) -> None:
    layout = PackedLayout.from_lengths(lengths)
    for of_keys in (False, True):
        tiles = layout.tiles(block, True, of_keys).tolist()
        covered = [(i, p) for i, first in tiles for p in range(first, min(first + block, lengths[i]))]
        assert sorted(covered) == [(i, p) for i, length in enumerate(lengths) for p in range(length)]
    rows = layout.groups(2, 1).query
    short = [
        row
        for start, n in zip(layout.starts, lengths, strict=True)
        if n <= GROUPED_LENGTH
        for row in range(2 * start, 2 * (start + n))
    ]
    assert rows.packed.tolist() == short
    assert rows.source[rows.real].tolist() == short
    assert sorted(rows.real.tolist() + rows.padding.tolist()) == list(range(len(rows.source)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_TND": torch.zeros(5, 4)}, "q_TND"),
        ({"k_TMD": torch.zeros(5, 3, 8)}, "k_TMD"),
        ({"k_TMD": torch.zeros(5, 3, 8), "v_TMD": torch.zeros(5, 3, 8)}, "multiple"),
        ({"v_TMD": torch.zeros(5, 2, 8, dtype=torch.float64)}, "v_TMD is torch.float64"),
        ({"cu_seqlens": torch.tensor([0, 2, 4], dtype=torch.int32)}, "4 tokens"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 5], dtype=torch.int32)}, "never fall"),
        ({"cu_seqlens": torch.tensor([1, 5], dtype=torch.int32)}, "start at 0"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "int32"),
        ({"cu_seqlens": None}, "layout"),
        ({"max_seqlen": 2}, "max_seqlen"),
        ({"window": 0}, "window"),
        ({"scale": 0.0}, "scale"),
        ({"backend": "flash"}, "backend"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {
        "q_TND": torch.zeros(5, 4, 8),
        "k_TMD": torch.zeros(5, 2, 8),
        "v_TMD": torch.zeros(5, 2, 8),
        "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=message):
        attention(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 100])
def test_gpu_dtypes_equal_the_oracle(dtype: torch.dtype, dim: int, window: int | None) -> None:
    assert_matches_oracle((300, 1, 0, 129, 1000), (8, 2), dim, "triton", "cuda", dtype=dtype, window=window)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_thousand_random_shapes_equal_the_oracle_on_a_gpu() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    for _ in range(1000):
        lengths = tuple(draw(0, 400) for _ in range(draw(1, 5)))
        key_heads = draw(1, 3)
        dim = (16, 64, 96, 128)[draw(0, 4)]
        window = draw(1, 300) if draw(0, 3) == 0 else None
        assert_matches_oracle(
            lengths, (draw(1, 4) * key_heads, key_heads), dim, "triton", "cuda",
            dtype=torch.bfloat16, causal=draw(0, 4) > 0, window=window,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("window", [None, 1, 100])
def test_torch_attention_over_packed_sequences_equals_the_oracle_on_a_gpu(
    heads: tuple[int, int], causal: bool, window: int | None
) -> None:
    assert_matches_oracle(
        (300, 1, 0, 129), heads, 64, "torch", "cuda", dtype=torch.bfloat16, causal=causal, window=window
    )


@pytest.mark.gpu
def test_backward_is_deterministic_on_a_gpu() -> None:
    lengths = (700, 33, 1500)
    *inputs, upstream = problem(lengths, (8, 2), 128, torch.bfloat16, "cuda")
    inputs = [x.requires_grad_() for x in inputs]
    layout = PackedLayout.from_lengths(lengths, "cuda")
    runs = [
        torch.autograd.grad(attention(*inputs, layout=layout, backend="triton"), inputs, upstream) for _ in range(5)
    ]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.gpu
def test_a_batch_beyond_32_bit_offsets_is_attended_to_its_end() -> None:
    lengths, heads, dim = (64,) * 4100, 64, 128
    layout = PackedLayout.from_lengths(lengths, "cuda")
    assert layout.tokens * heads * dim > 2**31
    q_TND = torch.empty(layout.tokens, heads, dim, device="cuda", dtype=torch.bfloat16).normal_().requires_grad_()
    k_TMD, v_TMD = (
        torch.randn(layout.tokens, 1, dim, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(2)
    )
    out_TND = attention(q_TND, k_TMD, v_TMD, layout=layout, backend="triton")
    last = slice(layout.tokens - 64, layout.tokens)
    upstream = torch.ones_like(out_TND)
    gradients = torch.autograd.grad(out_TND, (q_TND, k_TMD, v_TMD), upstream)
    exact = [x.detach()[last].double().requires_grad_() for x in (q_TND, k_TMD, v_TMD)]
    expected = dense_attention(*exact, (64,), causal=True, scale=dim**-0.5, window=None)
    torch.testing.assert_close(out_TND[last].double(), expected, atol=4e-2, rtol=4e-2)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, exact, torch.ones_like(expected)), strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(got[last].double() / scale, wanted / scale, atol=4e-2, rtol=4e-2)


# --- capped scores and sinks ---------------------------------------------------------------------------------------
def _scored_oracle(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, lengths: list[int], scale: float, window: int | None, softcap: float,
    sinks_N: Tensor,
) -> Tensor:  # fmt: skip
    """Every score by itself."""
    group = q_TND.shape[1] // k_TMD.shape[1]
    out_TND = torch.zeros_like(q_TND)
    start = 0
    for length in lengths:
        for head in range(q_TND.shape[1]):
            for query in range(length):
                first = 0 if window is None else max(0, query + 1 - window)
                keys = k_TMD[start + first : start + query + 1, head // group]
                scores = softcap * torch.tanh(keys @ q_TND[start + query, head] * scale / softcap)
                weights = scores.exp() / (scores.exp().sum() + sinks_N[head].exp())
                out_TND[start + query, head] = weights @ v_TMD[start + first : start + query + 1, head // group]
        start += length
    return out_TND


@pytest.mark.parametrize("window", [None, 3])
def test_capped_scores_and_sinks_equal_the_oracle(window: int | None) -> None:
    torch.manual_seed(0)
    lengths = [7, 1, 4]
    q_TND = torch.randn(12, 4, 8, dtype=torch.float64)
    k_TMD, v_TMD = (torch.randn(12, 2, 8, dtype=torch.float64) for _ in range(2))
    sinks_N = torch.randn(4, dtype=torch.float64)
    layout = PackedLayout.from_lengths(lengths, "cpu")
    options = {"scale": 0.9, "window": window, "softcap": 1.5, "sinks_N": sinks_N}
    got = attention(q_TND, k_TMD, v_TMD, layout=layout, **options)
    wanted = _scored_oracle(q_TND, k_TMD, v_TMD, lengths, 0.9, window, 1.5, sinks_N)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_reach_sinks_through_the_cap() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, 2, 8), torch.randn(5, 1, 8), torch.randn(5, 1, 8), torch.randn(2)]
    layout = PackedLayout.from_lengths([3, 2], "cpu")

    def total(*x: Tensor) -> Tensor:
        return attention(*x[:3], layout=layout, softcap=1.5, sinks_N=x[3]).square().sum()

    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(total(*leaves), leaves)
    for i, gradient in enumerate(gradients):
        direction = torch.randn_like(inputs[i])
        ahead, behind = (
            float(total(*(x + sign * 1e-2 * direction if j == i else x for j, x in enumerate(inputs))))
            for sign in (1, -1)
        )
        assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-2, rel=2e-2, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"sinks_N": torch.zeros(3)}, r"sinks_N must be \[N\] = \[2\]"),
        ({"softcap": 1.0, "backend": "triton"}, "Triton kernel computes no softcap"),
    ],
)
def test_bad_caps_and_sinks_are_refused(options: dict[str, Any], message: str) -> None:
    x_TND = torch.randn(3, 2, 8)
    with pytest.raises(ValueError, match=message):
        attention(x_TND, x_TND, x_TND, layout=PackedLayout.from_lengths([3], "cpu"), **options)
