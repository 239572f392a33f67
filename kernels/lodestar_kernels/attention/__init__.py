"""Attention over packed sequences of different lengths."""

from lodestar_kernels.attention.layout import PackedLayout
from lodestar_kernels.attention.op import attention
from lodestar_kernels.attention.prefixed import PrefixLayout, prefixed_attention

__all__ = ["PackedLayout", "PrefixLayout", "attention", "prefixed_attention"]
