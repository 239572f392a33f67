"""Attention over prompts that exist once: equal to attention over whole sequences, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lodestar_kernels.attention import PrefixLayout, attention, prefixed, prefixed_attention

GROUPS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=4
)


def inputs(layout: PrefixLayout, query_heads: int, key_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    shapes = [(layout.tokens, heads, 16) for heads in (query_heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=noise).to(dtype).requires_grad_() for shape in shapes]


def both(layout: PrefixLayout, heads: tuple[int, int], dtype: torch.dtype, **options):
    """Outputs and gradients, ours and those of float64 attention over the whole sequences."""
    ours = inputs(layout, *heads, dtype)
    exact = [x.detach().double().requires_grad_() for x in ours]
    out_TND = prefixed_attention(*ours, layout, **options)
    options.pop("backend", None)
    whole_UND = attention(*(x.index_select(0, layout.source_U) for x in exact), layout=layout.whole, **options)
    expected_TND = whole_UND.index_select(0, layout.back_T)
    weight_TND = torch.randn(out_TND.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((out_TND * weight_TND.to(dtype)).sum(), ours)
    expected = torch.autograd.grad((expected_TND * weight_TND).sum(), exact)
    return (out_TND, *grads), (expected_TND, *expected)


@pytest.mark.parametrize("small", [0, 10**9], ids=["once", "unfolded"])
@settings(max_examples=40, deadline=None)
@given(GROUPS, st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.sampled_from([None, 1, 3, 100]))
def test_every_shape_gives_what_whole_sequences_give(small, groups, heads, window) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixed, "ONCE_TOKENS", small)
        for found, wanted in zip(*both(PrefixLayout.of(groups), heads, torch.float64, window=window), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("long", [False, True])
def test_float32_is_close_to_float64(long: bool) -> None:
    layout = PrefixLayout.of([(500 if long else 60, (130, 141, 7)), (5, (9,))])
    for found, wanted in zip(*both(layout, (4, 2), torch.float32, scale=0.3), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"sinks_N": torch.tensor([0.5, -1.0, 0.0, 2.0]).double()}])
def test_caps_and_sinks_too(options) -> None:
    layout = PrefixLayout.of([(4, (2, 3)), (1, (1, 1, 5))])
    for found, wanted in zip(*both(layout, (4, 2), torch.float64, **options), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 4])
def test_the_triton_kernel_reads_the_same_layout(window: int | None) -> None:
    layout = PrefixLayout.of([(7, (5, 3, 9)), (3, (4,)), (2, (1, 2))])
    for found, wanted in zip(*both(layout, (4, 2), torch.float32, window=window, backend="triton"), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


def test_a_layout_says_what_is_wrong() -> None:
    for groups in ([(0, (1,))], [(2, ())], [(2, (1, 0))]):
        with pytest.raises(ValueError, match="a group needs a prompt and completions"):
            PrefixLayout.of(groups)
    layout = PrefixLayout.of([(2, (1, 2))])
    with pytest.raises(ValueError, match="q_TND has 4 rows, and the layout 5"):
        prefixed_attention(*(torch.zeros(4, 1, 16),) * 3, layout)
