"""The last verified weights on a policy server's own disk: a directory of versions, as the learner's is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lodestar.errors import ModelError
from lodestar.files import replacing
from lodestar.records import WeightFiles, WeightManifest, WeightVersion
from lodestar.weights.checks import route
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.publication import FULL, write_full
from lodestar.weights.tensors import load_verified

_HEAVY = 0.5
"""Part of the weights' bytes from which kept deltas are replaced by the weights."""


class WeightCache(WeightDirectory):
    """What was fetched, or leads there from the model that the server starts with."""

    def __init__(self, root: Path, start: WeightVersion) -> None:
        super().__init__(root)
        self._start = start
        self._kept: tuple[WeightFiles, ...] = ()

    def load(
        self, run: str, start: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[WeightManifest, dict[str, Tensor] | None] | None:
        """The manifest of the run's last version, and its tensors unless they are the start model's; None: no such.

        Raises:
            ModelError: it is damaged, or led here from another start model.
        """
        manifest = self.announced()
        if manifest is None or manifest.run != run:
            return None
        way = route(manifest, self._start.digest)
        try:
            tensors = load_verified(self, manifest, way, start()) if way else None
        except FileNotFoundError as error:
            raise ModelError(f"{error.filename} is missing") from error
        self._kept = way
        return manifest, tensors

    def keep(self, manifest: WeightManifest, way: tuple[WeightFiles, ...], tensors: Mapping[str, Tensor]) -> None:
        """Makes a version, whose files were fetched along ``way``, the one to load."""
        chain = way if way[0].parent is None else self._before(way[0].parent) + way
        size = sum(tensor.nbytes for tensor in tensors.values())
        deltas = sum(one.bytes for one in chain if one.parent is not None)
        broken = chain[0].parent is not None and chain[0].parent.digest != self._start.digest
        if broken or deltas > _HEAVY * size:
            with replacing(self.folder(manifest.version) / FULL, durable=False) as partial:
                file = write_full(partial, tensors)
            chain = (WeightFiles(manifest.version, (replace(file, name=FULL),)),)
        self.announce(replace(manifest, chain=chain))
        self._kept = chain
        self.prune(one.version for one in chain)

    def _before(self, parent: WeightVersion) -> tuple[WeightFiles, ...]:
        """What is kept of the way to the version that the new files change."""
        ends = [i for i, one in enumerate(self._kept) if one.version.digest == parent.digest]
        return self._kept[: ends[-1] + 1] if ends else ()
