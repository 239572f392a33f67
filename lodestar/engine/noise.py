"""Noise for sampling as a pure function of (seed, sample, position, choice): no generator state, any batch order.

A 64-bit key per row (splitmix64, Steele et al. 2014) and the choice's number go through a 32-bit mixer (the finaliser
of MurmurHash3). The arithmetic is integer and the same on every device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def stream_key(seed: int, sample: int) -> int:
    """The 64-bit key of one sample's noise."""
    return _mix(_mix(seed & _WORD) + (sample + 1) * _GOLDEN & _WORD)


def row_keys(streams: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Keys of one draw per row: uint64 [B] and [B] → int32 [B, 2]."""
    keys = _mix_array(streams + (positions + np.uint64(1)) * np.uint64(_GOLDEN))
    return keys.view(np.int32).reshape(-1, 2)


def exponential(keys_B2: Tensor, count: int) -> Tensor:
    """Standard exponential noise [B, count] in float32, strictly positive.

    ``argmax(p / noise)`` draws from p: it is the Gumbel-max rule, whose outcome changes only with the probability that
    p changes, so that rounding in p hardly ever flips a choice.
    """
    first, second = keys_B2[:, :1], keys_B2[:, 1:]
    bits_BC = torch.bitwise_xor(_scattered(count, keys_B2.device), first)
    shifted_BC = torch.empty_like(bits_BC)
    bits_BC.mul_(-2048144789)
    _fold(bits_BC, shifted_BC, 13)
    bits_BC.add_(second).mul_(-1028477379)
    _fold(bits_BC, shifted_BC, 16)
    bits_BC.mul_(668265263)
    _fold(bits_BC, shifted_BC, 15)
    # 31 bits; small values keep all of them in float32, and small noise is what wins.
    uniform_BC = bits_BC.bitwise_and_(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(-(2.0**-31))
    return uniform_BC.log1p_().neg_()


def _fold(bits: Tensor, buffer: Tensor, shift: int) -> None:
    """``bits ^= bits >>> shift``, logically."""
    torch.bitwise_right_shift(bits, shift, out=buffer)
    bits.bitwise_xor_(buffer.bitwise_and_((1 << 32 - shift) - 1))


@lru_cache(maxsize=4)
def _scattered(count: int, device: torch.device) -> Tensor:
    """0 … count − 1 spread over 32 bits, int32 [count]."""
    ids = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    return torch.from_numpy(ids.view(np.int32)).to(device)


def _mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31


def _mix_array(words: NDArray[Any]) -> NDArray[np.uint64]:
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ words >> np.uint64(31)
    return mixed
