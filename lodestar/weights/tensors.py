"""Tensors of a weight version to files, and back once they are verified."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lodestar.errors import ModelError
from lodestar.files import replacing
from lodestar.model.weights import tensor_digest, weights_digest
from lodestar.records import Probe, TensorFile, WeightManifest, WeightVersion
from lodestar.weights.directory import WeightDirectory, write_manifest

_FILE = "model.safetensors"


def publish(
    directory: WeightDirectory,
    tensors: Mapping[str, Tensor],
    *,
    run: str,
    incarnation: str,
    step: int,
    tokenizer_hash: str,
    keep: int,
    probe: Probe | None = None,
) -> WeightManifest:
    """Writes a full version, announces it and deletes all but the newest ``keep``.

    The caller may change the tensors in place once this returns.
    """
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = digests_of(host)
    version = WeightVersion(incarnation, step, weights_digest(digests))
    folder = directory.folder(version)
    with replacing(folder, durable=False) as partial:  # verified wherever it is read, and published anew by a restart
        partial.mkdir()
        save_file(host, partial / _FILE)
        manifest = WeightManifest(
            run=run,
            version=version,
            files=(TensorFile(_FILE, (partial / _FILE).stat().st_size),),
            tensors=digests,
            tokenizer_hash=tokenizer_hash,
            probe=probe,
        )
        write_manifest(partial / "manifest.json", manifest)
    directory.announce(manifest)
    directory.prune(keep)
    return manifest


def load_verified(folder: Path, manifest: WeightManifest) -> dict[str, Tensor]:
    """The tensors of fetched files, once each agrees with the manifest's digest.

    Raises:
        ModelError: a file is damaged, or a tensor is missing, unexpected or differs.
    """
    tensors: dict[str, Tensor] = {}
    for file in manifest.files:
        try:
            tensors.update(load_file(folder / file.name))
        except SafetensorError as error:
            raise ModelError(f"weights of step {manifest.version.step}: {file.name} is damaged: {error}") from error
    digests = digests_of(tensors)
    names = digests.keys() | manifest.tensors.keys()
    wrong = sorted(name for name in names if digests.get(name) != manifest.tensors.get(name))
    if wrong or weights_digest(digests) != manifest.version.digest:
        raise ModelError(
            f"weights of step {manifest.version.step}: {len(wrong)} tensors differ from the manifest "
            f"({', '.join(wrong[:3]) or 'the digest over all of them'})"
        )
    return tensors


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Hex sha256 by name; hashing releases the interpreter, so two threads use two cores."""
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(tensors, threads.map(tensor_digest, tensors.values()), strict=True))
