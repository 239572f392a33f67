"""What a weight manifest may say: it names files and sizes that others are about to write and read."""

from __future__ import annotations

import re

from lodestar.errors import ModelError
from lodestar.records import WeightManifest

MAX_FILES = 1000
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_INCARNATION = re.compile(r"[A-Za-z0-9]{0,64}")


def check_manifest(manifest: WeightManifest) -> WeightManifest:
    """The manifest, once its names are plain: no path leads out of a folder, or over the folder's other files.

    Raises:
        ModelError: a file's name is no plain name of a safetensors file, is there twice, or has no size; there are too
            many; or the incarnation is no plain word.
    """
    names = [file.name for file in manifest.files]
    if len(names) > MAX_FILES:
        raise ModelError(f"the weight manifest names {len(names)} files; at most {MAX_FILES}")
    if not _INCARNATION.fullmatch(manifest.version.incarnation):
        raise ModelError(f"the weight manifest's incarnation {manifest.version.incarnation[:80]!r} is no plain word")
    for file in manifest.files:
        if not _FILE.fullmatch(file.name):
            raise ModelError(f"the weight manifest's file {file.name[:80]!r} is no plain name of a safetensors file")
        if file.bytes < 1:
            raise ModelError(f"the weight manifest's file {file.name} has a size of {file.bytes} bytes")
    if len(set(names)) < len(names):
        raise ModelError("the weight manifest names a file twice")
    return manifest
