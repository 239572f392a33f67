"""What a weight manifest may say: it names files and sizes that others are about to write and read."""

from __future__ import annotations

import re

from lodestar.errors import ModelError
from lodestar.records import MAX_PROBES, WeightFiles, WeightManifest

MAX_FILES = 1000
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_INCARNATION = re.compile(r"[A-Za-z0-9]{0,64}")


def check_manifest(manifest: WeightManifest) -> WeightManifest:
    """The manifest, once its names are plain: no path leads out of a folder, or over the folder's other files.

    Raises:
        ModelError: a file's name is no plain name of a safetensors file, is there twice, or has no size; there are too
            many; an incarnation is no plain word; changes are in other than one file; or a probe cannot be replayed.
    """
    files = [(one.version, file) for one in manifest.chain for file in one.files]
    if len(files) > MAX_FILES:
        raise ModelError(f"the weight manifest names {len(files)} files; at most {MAX_FILES}")
    for version in (manifest.version, *(one.version for one in manifest.chain)):
        if not _INCARNATION.fullmatch(version.incarnation):
            raise ModelError(f"the weight manifest's incarnation {version.incarnation[:80]!r} is no plain word")
    for _, file in files:
        if not _FILE.fullmatch(file.name):
            raise ModelError(f"the weight manifest's file {file.name[:80]!r} is no plain name of a safetensors file")
        if file.bytes < 1:
            raise ModelError(f"the weight manifest's file {file.name} has a size of {file.bytes} bytes")
    if len({(version, file.name) for version, file in files}) < len(files):
        raise ModelError("the weight manifest names a file twice")
    if len(manifest.probes) > MAX_PROBES:
        raise ModelError(f"the weight manifest has {len(manifest.probes)} probes; at most {MAX_PROBES}")
    for probe in manifest.probes:
        scored = probe.scored
        if not 0 < scored.prompt_tokens < len(scored.token_ids) == scored.prompt_tokens + len(probe.logprobs):
            raise ModelError("a probe of the weight manifest needs a prompt, tokens behind it, and a log-prob of each")
    for one in manifest.chain:
        if one.parent is not None and len(one.files) != 1:
            raise ModelError(f"the changes of step {one.version.step} are in {len(one.files)} files, which must be one")
    return manifest


def route(manifest: WeightManifest, held: str) -> tuple[WeightFiles, ...]:
    """The files with the fewest bytes that lead to the manifest's version, from weights of the digest ``held`` or none.

    Raises:
        ModelError: none lead there.
    """
    best: dict[str, tuple[int, tuple[WeightFiles, ...]]] = {held: (0, ())}
    for one in manifest.chain:
        before = (0, ()) if one.parent is None else best.get(one.parent.digest)
        known = best.get(one.version.digest)
        if before is not None and (known is None or before[0] + one.bytes < known[0]):
            best[one.version.digest] = before[0] + one.bytes, (*before[1], one)
    if manifest.version.digest not in best:
        raise ModelError(f"weights of step {manifest.version.step}: the manifest names no files that lead there")
    return best[manifest.version.digest][1]
