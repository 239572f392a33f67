"""Attention over packed sequences of different lengths."""

from lodestar_kernels.attention.layout import PackedLayout
from lodestar_kernels.attention.op import attention

__all__ = ["PackedLayout", "attention"]
