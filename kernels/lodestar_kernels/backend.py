"""Which implementation an operation runs."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "torch"]

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


VARIABLE = "LODESTAR_KERNELS"


def choose_backend(asked: Backend | None, like: Tensor) -> Backend:
    """The implementation asked for, else Triton for the GPU dtypes on a GPU and torch elsewhere.

    The environment variable LODESTAR_KERNELS=torch takes every operation that nobody asked otherwise for off Triton: to
    find out whether a kernel is to blame.

    Raises ValueError for an unknown name, or for Triton on a dtype its kernels do not take.
    """
    if asked is None:
        default = os.environ.get(VARIABLE, "triton")
        _check(VARIABLE, default)
        return "triton" if default == "triton" and like.is_cuda and like.dtype in TRITON_DTYPES else "torch"
    _check("backend", asked)
    if asked == "triton" and like.dtype not in TRITON_DTYPES:
        raise ValueError(f'backend "triton" takes float16, bfloat16 and float32, got {like.dtype}')
    return asked


def _check(name: str, value: str) -> None:
    if value not in ("triton", "torch"):
        raise ValueError(f'{name} must be "triton" or "torch", got {value!r}')
