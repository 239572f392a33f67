"""Which models were compared with transformers' own attention already: once per model, not once per process."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from lodestar.model import attention, logits, packed

FOLDER = "compared"


@dataclass(frozen=True, slots=True)
class Compared:
    """``Compared.of(model, path)``: whether this model was found right before, and a way to remember it."""

    marker: Path | None
    """Exists once the comparison succeeded; None where there is no folder of files to recognise the model by."""

    @property
    def known(self) -> bool:
        """Whether the comparison was made, by this process or another one."""
        return self.marker is not None and self.marker.exists()

    def remember(self) -> None:
        """The comparison succeeded. A cache that cannot be written costs the next process a second."""
        if self.marker is None or self.marker.exists():
            return
        try:
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            self.marker.touch()
        except OSError:
            return

    @staticmethod
    def of(model: PreTrainedModel, path: str | Path) -> Compared:
        """By the model's class, configuration, weight files (names, sizes, times) and all code that computes it."""
        folder = Path(path)
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if not files:
            return Compared(None)
        parameter = next(model.parameters())
        meaning = [
            type(model).__name__,
            model.config.to_json_string(use_diff=False),
            [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
            [str(parameter.dtype), parameter.device.type],
            [transformers.__version__, torch.__version__, _code_digest()],
        ]
        key = hashlib.sha256(json.dumps(meaning).encode()).hexdigest()
        return Compared(cache_folder() / FOLDER / key)


def cache_folder() -> Path:
    """Where what can be made again is kept: ``LODESTAR_CACHE``, or the user's cache folder."""
    given, home = os.environ.get("LODESTAR_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    if home:
        return Path(home) / "lodestar"
    try:
        return Path.home() / ".cache" / "lodestar"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / "lodestar"


def _code_digest() -> str:
    digest = hashlib.sha256()
    for module in (attention, logits, packed):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
