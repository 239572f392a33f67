"""Tensors of a weight version from its files, along a route (lodestar.weights.checks), verified at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lodestar.errors import ModelError
from lodestar.model.weights import tensor_digest, weights_digest
from lodestar.records import WeightFiles, WeightManifest
from lodestar.weights.bits import bits_of
from lodestar.weights.deltas import FORMAT, change
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.full import FullReader

_PIECE = 2**24


class Loading:
    """The weights of a manifest in the making: for each part of the route, what it holds; then :meth:`verified`."""

    def __init__(self, manifest: WeightManifest, held: Mapping[str, Tensor]) -> None:
        """``held`` are CPU tensors that the route may begin from; they are read and never written."""
        self._manifest = manifest
        self._tensors = dict(held)
        self._own: set[str] = set()
        """Tensors that are this object's alone, and may be written."""
        self._digests: dict[str, str] = {}

    def take_full(self, readers: Sequence[FullReader]) -> None:
        """All tensors, read from files."""
        self._tensors, self._digests = {}, {}
        for reader in readers:
            reader.finish()
            self._tensors |= reader.tensors
            self._digests |= reader.digests
        self._own = {*self._tensors}

    def take_changes(self, path: Path) -> None:
        """The file of what changed since.

        Raises:
            ModelError: it is damaged, or belongs to other tensors.
        """
        try:
            with safe_open(path, "np") as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise ModelError(f"{path.name}: what changed is not written as {FORMAT}")
                coded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except SafetensorError as error:
            raise ModelError(f"{path.name} is damaged: {error}") from error
        if unknown := sorted(coded.keys() - self._tensors.keys()):
            raise ModelError(f"{path.name} changes tensors that are not there: {', '.join(unknown[:3])}")
        with ThreadPoolExecutor(2) as threads:  # hashing releases the interpreter, so two threads use two cores
            changed = threads.map(lambda name: self._changed(name, coded.get(name)), self._tensors)
            pairs = dict(zip(self._tensors, changed, strict=True))
        self._tensors = {name: tensor for name, (tensor, _) in pairs.items()}
        self._digests = {name: digest for name, (_, digest) in pairs.items()}
        self._own |= coded.keys()

    def _changed(self, name: str, coded: NDArray[Any] | None) -> tuple[Tensor, str]:
        before = self._tensors[name]
        if coded is None:
            return before, tensor_digest(before)
        after, digest = before if name in self._own else torch.empty_like(before), hashlib.sha256()
        for block in change(coded, bits_of(before), bits_of(after)):
            digest.update(block.data)
        return after, digest.hexdigest()

    def verified(self) -> dict[str, Tensor]:
        """The tensors, once each agrees with the manifest's digest.

        Raises:
            ModelError: one is missing, unexpected or differs.
        """
        told, step = self._manifest.tensors, self._manifest.version.step
        wrong = sorted(name for name in self._digests.keys() | told.keys() if self._digests.get(name) != told.get(name))
        if wrong or weights_digest(self._digests) != self._manifest.version.digest:
            raise ModelError(
                f"weights of step {step}: {len(wrong)} tensors differ from the manifest "
                f"({', '.join(wrong[:3]) or 'the digest over all of them'})"
            )
        return self._tensors


def load_verified(
    directory: WeightDirectory, manifest: WeightManifest, route: Sequence[WeightFiles], held: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a manifest from files in a directory, as :class:`Loading` makes them.

    Raises:
        FileNotFoundError: a file is missing.
        ModelError: one is damaged.
    """
    loading = Loading(manifest, held)
    for part in route:
        folder = directory.folder(part.version)
        if part.parent is None:
            loading.take_full([_read(folder / file.name, file.bytes) for file in part.files])
        else:
            loading.take_changes(folder / part.files[0].name)
    return loading.verified()


def _read(path: Path, size: int) -> FullReader:
    reader = FullReader(path.name, size)
    with path.open("rb", buffering=0) as file:
        while data := file.read(_PIECE):
            reader.feed(data)
    return reader
