"""Which implementation an operation runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "torch"]

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def choose_backend(asked: Backend | None, like: Tensor) -> Backend:
    """The implementation asked for, else Triton for the GPU dtypes on a GPU and torch elsewhere.

    Raises ValueError for an unknown name, or for Triton on a dtype its kernels do not take.
    """
    if asked is None:
        return "triton" if like.is_cuda and like.dtype in TRITON_DTYPES else "torch"
    if asked not in ("triton", "torch"):
        raise ValueError(f'backend must be "triton", "torch" or None, got {asked!r}')
    if asked == "triton" and like.dtype not in TRITON_DTYPES:
        raise ValueError(f'backend "triton" takes float16, bfloat16 and float32, got {like.dtype}')
    return asked
