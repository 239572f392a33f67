"""What changed between two versions of a tensor, bit for bit and in few bytes.

At a learning rate of 1e-6 a step of Adam moves 2–4% of bfloat16 weights, nearly all of them by one unit in the last
place. A block of a tensor (lodestar.weights.bits) is therefore

- gaps: how many elements stand still before each that moved, a byte each (255: so many, and go on);
- changes: old XOR new of those that moved, plane of bytes by plane: of one-unit steps the upper plane is zeros;

both in one zstd frame. Where most elements move (float32) the gaps are left out and all elements have a change: the
planes of sign and exponent compress, those of the last digits do not.

    uint32 changed, uint32 bytes of gaps, uint32 bytes of the frame; the frame      little-endian, for every block
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import zstandard
from numpy.typing import NDArray

from lodestar.errors import ModelError
from lodestar.weights.bits import Bits, blocks_of

FORMAT = "gaps-xor-zstd-1"
"""Stands in the metadata of a file of deltas."""
_HEAD = struct.Struct("<III")
_ON = 255
"""A gap of so many, to which the next byte adds."""
_DENSE = 0.5
"""Part of a block's elements from which all are written: a gap costs more than a change of zero."""


class Coder:
    """Codes a tensor's blocks in order; one thread's."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._parts: list[bytes] = []
        self.bytes = 0
        """Coded so far."""
        self.moved = False
        """Whether anything changed."""

    def add(self, changes: Bits) -> None:
        """The next block's old XOR new."""
        positions = np.flatnonzero(changes != 0)
        if not len(positions):
            self._take(_HEAD.pack(0, 0, 0))
            return
        self.moved = True
        gaps = b""
        if len(positions) > _DENSE * len(changes):
            positions = np.arange(len(changes))
        else:
            gaps = _gaps(positions).tobytes()
            changes = changes[positions]
        planes = changes.view(np.uint8).reshape(len(changes), -1).T
        frame = self._compressor.compress(gaps + planes.tobytes())
        self._take(_HEAD.pack(len(positions), len(gaps), len(frame)), frame)

    def _take(self, *parts: bytes) -> None:
        self._parts += parts
        self.bytes += sum(map(len, parts))

    def finish(self) -> NDArray[np.uint8]:
        """All blocks."""
        return np.frombuffer(b"".join(self._parts), np.uint8)


def change(coded: NDArray[np.uint8], before: Bits, after: Bits) -> Iterator[Bits]:
    """Writes into ``after`` what ``before`` became, and yields it block by block.

    Raises:
        ModelError: what was coded is damaged, or belongs to a tensor of another size.
    """
    data, decompressor = coded.data, zstandard.ZstdDecompressor()
    for where in blocks_of(len(before)):
        block = after[where]
        np.copyto(block, before[where])
        head, data = data[: _HEAD.size], data[_HEAD.size :]
        if len(head) < _HEAD.size:
            raise ModelError("a delta ends before its tensor does")
        changed, gap_bytes, size = _HEAD.unpack(head)
        frame, data = data[:size], data[size:]
        if changed:
            body = _body(decompressor, frame, gap_bytes + changed * block.itemsize)
            changes = np.ascontiguousarray(body[gap_bytes:].reshape(block.itemsize, changed).T)
            block[_positions(body[:gap_bytes], changed, len(block))] ^= changes.view(block.dtype).reshape(-1)
        yield block
    if data:
        raise ModelError("a delta goes on behind its tensor's end")


def _body(decompressor: zstandard.ZstdDecompressor, frame: memoryview, size: int) -> NDArray[np.uint8]:
    try:
        told = zstandard.get_frame_parameters(frame).content_size
        if told != size:  # looked at first: a frame may say that it becomes anything
            raise ModelError(f"a delta's block has {told} bytes in place of {size}")
        return np.frombuffer(decompressor.decompress(frame), np.uint8)
    except zstandard.ZstdError as error:
        raise ModelError(f"a delta's block is damaged: {error}") from error


def _gaps(positions: NDArray[np.intp]) -> NDArray[np.uint8]:
    still = np.diff(positions, prepend=-1) - 1
    if still.max() < _ON:
        return still.astype(np.uint8)
    whole, rest = np.divmod(still, _ON)
    ends = np.cumsum(whole + 1) - 1
    gaps = np.full(ends[-1] + 1, _ON, np.uint8)
    gaps[ends] = rest
    return gaps


def _positions(gaps: NDArray[np.uint8], changed: int, elements: int) -> NDArray[np.intp] | slice:
    if not len(gaps) and changed == elements:
        return slice(None)
    ends = np.flatnonzero(gaps != _ON)
    if len(ends) == changed and ends[-1] == len(gaps) - 1:
        positions = np.cumsum(gaps, dtype=np.intp)[ends] + np.arange(changed)
        if positions[-1] < elements:
            return positions
    raise ModelError(f"a delta's block names other than {changed} of {elements} elements")
