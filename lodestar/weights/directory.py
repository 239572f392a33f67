"""Weight versions in a directory: where the learner publishes, and what the process beside it serves.

weights/
  announced.json                what to serve now: a weight manifest, replaced atomically
  9f31c2aa-12/                  one version: incarnation and step
    model.safetensors           every tensor, or
    delta.safetensors           what changed since the version before (or both)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import json_format

from lodestar.errors import ModelError
from lodestar.files import remove_leftovers, write_atomically
from lodestar.records import WeightManifest, WeightVersion
from lodestar.rpc import convert
from lodestar.v1 import weights_pb2
from lodestar.weights.checks import check_manifest


class WeightDirectory:
    """Versions below one folder. Needs no torch: the process that serves it over gRPC starts in a moment."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def announce(self, manifest: WeightManifest) -> None:
        """Makes a version, whose files are there, the one to serve."""
        write_manifest(self.root / "announced.json", manifest)

    def retract(self) -> None:
        """Announces nothing: what stands there belongs to another incarnation."""
        (self.root / "announced.json").unlink(missing_ok=True)

    def announced(self) -> WeightManifest | None:
        """What is announced now; None before the first."""
        try:
            return read_manifest(self.root / "announced.json")
        except FileNotFoundError:
            return None

    def folder(self, version: WeightVersion) -> Path:
        """Where a version's files are."""
        return self.root / f"{version.incarnation}-{version.step}"

    def prune(self, keep: Iterable[WeightVersion]) -> None:
        """Deletes all versions but these, and what a killed process left half written."""
        kept = {self.folder(version).name for version in keep}
        remove_leftovers(self.root, below=True)
        for path in self.root.iterdir():
            if path.is_dir() and path.name not in kept and not path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def write_manifest(path: Path, manifest: WeightManifest) -> None:
    """Writes a manifest as protobuf JSON, atomically; not fsynced, as what it names is verified by its digests."""
    text = json_format.MessageToJson(convert.weight_manifest_to_proto(manifest))
    write_atomically(path, text, durable=False)


def read_manifest(path: Path) -> WeightManifest:
    """Reads what write_manifest wrote.

    Raises:
        FileNotFoundError: there is none.
        ModelError: it is damaged, or names what a manifest may not (lodestar.weights.checks).
    """
    try:
        message = json_format.Parse(path.read_bytes(), weights_pb2.WeightManifest())
    except json_format.ParseError as error:
        raise ModelError(f"{path} is no weight manifest: {error}") from error
    return check_manifest(convert.weight_manifest_from_proto(message))
