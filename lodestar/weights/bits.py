"""Tensors as unsigned integers of their elements' size, block by block: what is hashed, written and compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 2**20
"""Elements that are looked at together: few enough to stay in a processor's cache between hash, comparison and copy."""
Bits = NDArray[np.unsignedinteger[Any]]


def bits_of(tensor: Tensor) -> Bits:
    """The elements [N] of a contiguous CPU tensor; it and the array share their memory."""
    flat: Bits = tensor.detach().reshape(-1).view(torch.uint8).numpy().view(f"<u{tensor.element_size()}")
    return flat


def blocks_of(elements: int) -> Iterator[slice]:
    """Where the blocks of so many elements lie."""
    return (slice(start, min(start + BLOCK, elements)) for start in range(0, elements, BLOCK))
