"""Attention over a paged key/value cache, for generation."""

from lodestar_kernels.paged_attention.layout import PagedLayout
from lodestar_kernels.paged_attention.op import paged_attention, write_kv

__all__ = ["PagedLayout", "paged_attention", "write_kv"]
