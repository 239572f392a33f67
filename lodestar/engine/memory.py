"""Memory that costs nothing until it is written, and copies to a device that nobody waits for."""

from __future__ import annotations

import mmap
from math import prod

import torch
from torch import Tensor

from lodestar.errors import ModelError


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``, copied behind what runs there already, without waiting for it."""
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


class LazyTensor:
    """A zero tensor in pages of its own that the system provides on first write and takes back on :meth:`discard`.

    The page table then does for a slab per sequence what a block table does for pages: a slab of the longest
    permitted length takes as much memory as its sequence has tokens (vAttention, Prabhu et al. 2024).
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """
        Raises:
            ModelError: the address space is refused.
        """
        size = prod(shape) * dtype.itemsize
        try:
            self._pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except OSError as error:
            raise ModelError(
                f"policy: no address space for a KV cache of {size / 2**30:.1f} GiB; lower policy.max_sequences"
            ) from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._pages.madvise(mmap.MADV_NOHUGEPAGE)
        self.tensor: Tensor = torch.frombuffer(self._pages, dtype=dtype, count=prod(shape)).view(shape)

    def discard(self, index: tuple[int, ...]) -> None:
        """Give back the pages that lie wholly inside ``tensor[index]`` (leading indices); they read as zero."""
        part = self.tensor[index]
        start = part.storage_offset() * part.element_size()
        end = start + part.numel() * part.element_size()
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED, start, end - start)


_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0)
