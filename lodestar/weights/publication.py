"""What a learner publishes: a full version now and then, and what changed from each version to the next between them.

One pass over a tensor does everything: each block is hashed, compared with the version before, copied to be compared
with the next, and written where a full version is due.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from lodestar.config.services import WeightDeltas
from lodestar.files import replacing
from lodestar.model.weights import weights_digest
from lodestar.records import Probe, TensorFile, WeightFiles, WeightManifest, WeightVersion
from lodestar.weights.bits import Bits, bits_of, blocks_of
from lodestar.weights.deltas import FORMAT, Coder
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.full import layout

FULL = "model.safetensors"
DELTA = "delta.safetensors"
PAYS = 0.5
"""Part of the full version's bytes up to which a delta is sent."""
_SURE = 0.125
"""Part of the bytes after which a delta that does not pay is given up."""


class Publication:
    """The versions of one start of a learner, below a directory."""

    def __init__(
        self,
        directory: WeightDirectory,
        *,
        run: str,
        incarnation: str,
        tokenizer_hash: str,
        keep: int,
        deltas: WeightDeltas = "16bit",
        full_every: int = 1,
    ) -> None:
        """``keep`` versions stay on disk, and all that lead from the last full one to the present one."""
        self._directory = directory
        self._run = run
        self._incarnation = incarnation
        self._tokenizer_hash = tokenizer_hash
        self._keep = keep
        self._deltas = deltas
        self._full_every = full_every
        self._base: dict[str, Bits] = {}
        """The version before, where the next one is compared with it."""
        self._chain: list[WeightFiles] = []
        self._rest = 0
        """Versions until deltas, which did not pay, are tried again."""
        self._coding = False
        self._seen = self._coded = 0
        self._counting = threading.Lock()

    def publish(
        self, tensors: Mapping[str, Tensor], step: int, *, probes: Sequence[Probe] = (), full: bool = False
    ) -> WeightManifest:
        """Writes a version, announces it and deletes what nobody needs.

        It is full when ``full`` says so, every ``full_every`` versions, and where a delta would not pay; a delta beside
        it serves those who hold the version before. The caller may change the tensors once this returns.

        Raises:
            ModelError: a tensor is of no dtype that weights have.
        """
        try:
            return self._publish(tensors, step, probes, full)
        except BaseException:
            self._base = {}  # half of it may be this version's
            raise

    def _publish(self, tensors: Mapping[str, Tensor], step: int, probes: Sequence[Probe], full: bool) -> WeightManifest:
        base = self._chain[-1].version if self._base else None
        due = full or base is None or self._since_full() + 1 >= self._full_every
        self._rest = max(0, self._rest - 1)
        folder = self._directory.folder(WeightVersion(self._incarnation, step, ""))
        with replacing(
            folder, durable=False
        ) as partial:  # verified wherever it is read, and published anew by a restart
            partial.mkdir()
            digests, deltas = self._pass_over(tensors, base is not None, partial / FULL if due else None)
            if base is not None and not self._coding:  # it does not pay
                base, self._base, self._rest = None, {}, self._full_every
                if not due:
                    due, (digests, _) = True, self._pass_over(tensors, False, partial / FULL)
            version = WeightVersion(self._incarnation, step, weights_digest(digests))
            self._chain = [one for one in self._chain if one.version != version]  # published again
            if base not in (None, version):
                save_file(deltas, partial / DELTA, metadata={"format": FORMAT})
                self._chain.append(WeightFiles(version, (_file(partial / DELTA),), base))
            if due:
                self._chain.append(WeightFiles(version, (_file(partial / FULL),)))
        self._forget()
        manifest = WeightManifest(self._run, version, tuple(self._chain), digests, self._tokenizer_hash, tuple(probes))
        self._directory.announce(manifest)
        self._directory.prune(one.version for one in self._chain)
        return manifest

    def _since_full(self) -> int:
        """Versions since the last full one."""
        return next(i for i, one in enumerate(reversed(self._chain)) if one.parent is None)

    def _forget(self) -> None:
        """Drops the chain's beginning: what is older than the last full version and than ``keep`` versions."""
        newest = list(dict.fromkeys(one.version for one in reversed(self._chain)))[: self._keep]
        first_kept = next(i for i, one in enumerate(self._chain) if one.version in newest)
        last_full = len(self._chain) - 1 - self._since_full()
        self._chain = self._chain[min(first_kept, last_full) :]

    def _pass_over(
        self, tensors: Mapping[str, Tensor], code: bool, full: Path | None
    ) -> tuple[dict[str, str], dict[str, NDArray[np.uint8]]]:
        """Digests, and deltas of what moved, by name; also writes the full version's file where it is asked for.

        Hashing and comparing release the interpreter, so two threads use two cores.
        """
        self._coding, self._seen, self._coded = code, 0, 0
        keep = not self._rest and self._full_every > 1 and _wants_deltas(self._deltas, tensors)
        total = sum(tensor.nbytes for tensor in tensors.values())
        head, places = layout(tensors)
        file = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666) if full else None

        def one(name: str) -> tuple[str, NDArray[np.uint8] | None]:
            bits = bits_of(tensors[name].detach().cpu().contiguous())
            return self._pass(name, bits, total, file, places[name], keep=keep)

        try:
            if file is not None:
                _write(file, head, 0)
            with ThreadPoolExecutor(2) as threads:
                passed = dict(zip(tensors, threads.map(one, tensors), strict=True))
        finally:
            if file is not None:
                os.close(file)
        self._coding = self._coding and self._coded <= PAYS * total
        if not keep:
            self._base = {}
        deltas = {name: coded for name, (_, coded) in passed.items() if coded is not None}
        return {name: digest for name, (digest, _) in passed.items()}, deltas

    def _pass(
        self, name: str, bits: Bits, total: int, file: int | None, at: int, *, keep: bool
    ) -> tuple[str, NDArray[np.uint8] | None]:
        digest, coder, base = hashlib.sha256(), Coder(), self._base.get(name)
        compare = base is not None and self._coding
        if base is None and keep:
            base = self._base[name] = np.empty_like(bits)
        for where in blocks_of(len(bits)):
            block = bits[where]
            digest.update(block.data)
            if file is not None:
                _write(file, block.data, at)
                at += block.nbytes
            if base is not None:
                if compare and self._coding:
                    coder.add(block ^ base[where])
                base[where] = block
        with self._counting:
            self._seen += bits.nbytes
            self._coded += coder.bytes if coder.moved else 0
            if self._seen > _SURE * total and self._coded > PAYS * self._seen:
                self._coding = False
        return digest.hexdigest(), coder.finish() if coder.moved and self._coding else None


def write_full(path: Path, tensors: Mapping[str, Tensor]) -> TensorFile:
    """Writes CPU tensors whose digests are known, as a full version's file."""
    head, _ = layout(tensors)
    with path.open("xb") as file:
        file.write(head)
        for tensor in tensors.values():
            file.write(bits_of(tensor.contiguous()).data)
    return _file(path)


def _wants_deltas(deltas: WeightDeltas, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the option is for weights like these: for most of their bytes."""
    short = sum(tensor.nbytes for tensor in tensors.values() if tensor.element_size() == 2)
    return deltas == "all" or 2 * short >= sum(tensor.nbytes for tensor in tensors.values())


def _write(file: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def _file(path: Path) -> TensorFile:
    return TensorFile(path.name, path.stat().st_size)
