"""Every tensor of a version in one safetensors file, hashed while it is written and while it is read.

The format is safetensors' (https://github.com/huggingface/safetensors, "Format"): a little-endian uint64 with the
size of a JSON header, the header, the tensors' bytes. Its library writes and reads whole files; a version arrives in
chunks, and what is read here is memory of its own, which may be served as it is.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from lodestar.errors import ModelError

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000
"""As the library has it."""


def layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """What stands before the tensors' bytes, and where in the file each tensor begins.

    Raises:
        ModelError: a tensor has a dtype that weights do not have.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ModelError(f"weights: {name} is {tensor.dtype}; weights are one of {', '.join(NAMES.values())}")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = _LENGTH.pack(len(text)) + text
    return head, {name: len(head) + one["data_offsets"][0] for name, one in header.items()}


class FullReader:
    """Takes a file of known size in pieces of any size: ``feed`` all of it, then ``finish``."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._left = size
        self._head = bytearray()
        self._need = _LENGTH.size
        self._waiting: list[tuple[str, Tensor]] = []
        """Tensors not yet full, the next one last."""
        self._filled = 0
        """Bytes of the next one."""
        self._hash = hashlib.sha256()
        self.tensors: dict[str, Tensor] = {}
        self.digests: dict[str, str] = {}

    def feed(self, data: bytes | memoryview) -> None:
        """The next piece.

        Raises:
            ModelError: the header is no safetensors header of a file of this size.
        """
        piece = memoryview(data)
        while piece and self._need:
            taken, piece = piece[: self._need], piece[self._need :]
            self._head += taken
            self._need -= len(taken)
            self._left -= len(taken)
            if not self._need and len(self._head) == _LENGTH.size:
                (self._need,) = _LENGTH.unpack(self._head)
                if not 0 < self._need <= min(self._left, _MOST_HEADER_BYTES):
                    raise self._damaged(f"a header of {self._need} bytes")
            elif not self._need:
                self._begin(bytes(self._head[_LENGTH.size :]))
        while piece:
            piece = self._fill(piece)

    def finish(self) -> None:
        """
        Raises:
            ModelError: the file ended before its tensors.
        """
        if self._need or self._waiting:
            raise self._damaged("it ends before its tensors do")

    def _begin(self, header: bytes) -> None:
        try:
            told = {name: one for name, one in json.loads(header).items() if name != "__metadata__"}
            order = sorted(told, key=lambda name: (tuple(told[name]["data_offsets"]), name))
            edges = [tuple(told[name]["data_offsets"]) for name in order]
            shapes = [(_DTYPES[told[name]["dtype"]], told[name]["shape"]) for name in order]
            sizes = [prod(shape) * dtype.itemsize for dtype, shape in shapes]
            whole = all(before[1] == after[0] for before, after in pairwise([(0, 0), *edges, (self._left, 0)]))
            if not whole or [end - begin for begin, end in edges] != sizes or min(sizes, default=0) < 0:
                raise self._damaged("its tensors do not fill it")
            made = [torch.empty(shape, dtype=dtype) for dtype, shape in shapes]
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
            raise self._damaged(f"its header says no tensors ({type(error).__name__})") from error
        self._waiting = [*zip(order, made, strict=True)][::-1]
        self._close_full()

    def _fill(self, piece: memoryview) -> memoryview:
        if not self._waiting:
            raise self._damaged("it goes on behind its tensors")
        bytes_: Any = self._waiting[-1][1].reshape(-1).view(torch.uint8).numpy().data
        taken = piece[: len(bytes_) - self._filled]
        bytes_[self._filled : self._filled + len(taken)] = taken
        self._hash.update(taken)
        self._filled += len(taken)
        self._close_full()
        return piece[len(taken) :]

    def _close_full(self) -> None:
        """Goes on to the next tensor that is not full."""
        while self._waiting and self._waiting[-1][1].nbytes == self._filled:
            name, tensor = self._waiting.pop()
            self.tensors[name], self.digests[name] = tensor, self._hash.hexdigest()
            self._hash, self._filled = hashlib.sha256(), 0

    def _damaged(self, why: str) -> ModelError:
        return ModelError(f"{self._name} is damaged: {why}")
