"""What changed between two versions of a tensor comes back bit for bit, whatever changed."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestar.errors import ModelError
from lodestar.weights import bits, deltas
from lodestar.weights.bits import bits_of, blocks_of
from lodestar.weights.deltas import Coder, change

DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def coded(before, after):
    coder = Coder()
    for where in blocks_of(len(before)):
        coder.add(before[where] ^ after[where])
    return coder


def applied(code, before):
    after = np.empty_like(before)
    for _ in change(code, before, after):
        pass
    return after


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 255, 256, 999, 1000, 1001, 2700]),
    width=st.sampled_from(sorted(DTYPES)),
    share=st.sampled_from([0.0, 0.0008, 0.02, 0.3, 0.6, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_two_versions_lead_to_each_other(size, width, share, seed):
    noise = np.random.default_rng(seed)
    before = noise.integers(0, 2 ** (8 * width), size, dtype=f"u{width}")  # NaN and infinity among them
    moved = noise.random(size) < share
    after = np.where(moved, noise.integers(0, 2 ** (8 * width), size, dtype=f"u{width}"), before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "BLOCK", 1000)
        coder = coded(before, after)
        assert coder.moved == bool((before != after).any())
        assert np.array_equal(applied(coder.finish(), before), after)


def test_a_step_at_a_small_learning_rate_takes_a_fiftieth_of_bfloat16_and_less_than_half_of_float32():
    noise = torch.Generator().manual_seed(0)
    master = torch.randn(500_000, generator=noise) * 0.02
    moved = master - 1e-6 * torch.randn(500_000, generator=noise).clamp(-2, 2)
    sizes = {}
    for dtype in (torch.bfloat16, torch.float32):
        before, after = bits_of(master.to(dtype)), bits_of(moved.to(dtype))
        code = coded(before, after).finish()
        assert np.array_equal(applied(code, before), after)
        sizes[dtype] = len(code) / before.nbytes
    assert sizes[torch.bfloat16] < 0.025
    assert 0.2 < sizes[torch.float32] < 0.5


def test_one_element_of_many_costs_a_few_bytes():
    before = np.zeros(bits.BLOCK, np.uint16)
    after = before.copy()
    after[-1] = 7
    coder = coded(before, after)
    assert coder.bytes < 60
    assert np.array_equal(applied(coder.finish(), before), after)


def test_values_are_changed_where_they_lie():
    before = np.arange(100, dtype=np.uint16)
    after = before[::-1].copy()
    code, live = coded(before, after).finish(), before.copy()
    for _ in change(code, live, live):
        pass
    assert np.array_equal(live, after)


def test_damage_and_other_sizes_are_told():
    before, after = np.zeros(5000, np.uint16), np.zeros(5000, np.uint16)
    after[::50] = 1
    code = coded(before, after).finish()
    for wrong, why in (
        (code[:-3], "damaged|has"),
        (code[:5], "ends before its tensor"),
        (np.append(code, code[:1]), "goes on behind"),
        (np.frombuffer(code[:12].tobytes() + b"\1" * (len(code) - 12), np.uint8), "damaged|has"),
    ):
        with pytest.raises(ModelError, match=why):
            applied(wrong, before)
    with pytest.raises(ModelError, match="names other than 100 of 4000 elements"):
        applied(code, before[:4000])


def test_a_frame_that_would_become_anything_is_not_unpacked():
    bomb = deltas.zstandard.ZstdCompressor().compress(bytes(10**8))
    code = np.frombuffer(struct.pack("<III", 1, 1, len(bomb)) + bomb, np.uint8)
    with pytest.raises(ModelError, match="has 100000000 bytes in place of 3"):
        applied(code, np.zeros(10, np.uint16))
