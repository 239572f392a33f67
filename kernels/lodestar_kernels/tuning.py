"""Block shapes of the kernels: a default for each kind of problem, and measured choices that outlive the process.

A call never measures anything: it takes what `Tuner.tune` found on this kind of device before, else the first
candidate. `tune` is called by the warm-up functions, where the time that it takes is expected. Under Triton's
interpreter there is one candidate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import triton

Key = tuple[int | str | bool, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tile of rows × columns (queries × keys), warps per program, and depth of the software pipeline."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2


@dataclass(slots=True)
class Tuner:
    """Chooses among `candidates(key)`, best guess first; choices are kept per device in Triton's cache folder."""

    name: str
    candidates: Callable[[Key], Sequence[Blocks]]
    time: Callable[[Callable[[], object]], float] = triton.testing.do_bench
    _chosen: dict[Key, Blocks] = field(default_factory=dict)
    _loaded: bool = False

    def choose(self, key: Key) -> Blocks:
        """The measured choice for `key` on this device, else the first candidate."""
        if interpreted():
            return self.candidates(key)[0]
        if not self._loaded:
            self._load()
        return self._chosen.get(key) or self.candidates(key)[0]

    def tune(self, key: Key, run: Callable[[Blocks], object]) -> Blocks:
        """Time `run` with every candidate that the device can launch, and remember the fastest."""
        from triton.runtime.errors import OutOfResources

        self.choose(key)
        times: dict[Blocks, float] = {}
        for blocks in self.candidates(key):
            try:
                times[blocks] = self.time(partial(run, blocks))
            except OutOfResources:
                continue
        self._chosen[key] = min(times, key=lambda blocks: times[blocks])
        self._save()
        return self._chosen[key]

    @property
    def _path(self) -> Path:
        device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "no-device"
        return Path(triton.knobs.cache.dir) / f"lodestar-{self.name}-{device}.json"

    def _load(self) -> None:
        self._loaded = True
        if self._path.exists():
            entries = json.loads(self._path.read_text())
            self._chosen.update({tuple(entry["key"]): Blocks(**entry["blocks"]) for entry in entries})

    def _save(self) -> None:
        entries = [{"key": list(key), "blocks": asdict(blocks)} for key, blocks in self._chosen.items()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(entries, indent=1))
        fresh.replace(self._path)


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)
