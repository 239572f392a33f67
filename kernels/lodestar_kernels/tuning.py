"""Block shapes of the kernels: a default for each kind of problem, and measured choices that outlive the process.

A call never measures anything: it takes what `Tuner.tune` found on this kind of device before, else the first
candidate that the device can launch. `tune` is called by the warm-up functions, where the time that it takes is
expected. Under Triton's interpreter there is one candidate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
import triton

Key = tuple[int | str | bool, ...]
Candidate = TypeVar("Candidate")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tile of rows × columns (queries × keys), warps per program, and depth of the software pipeline."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2


@dataclass(slots=True)
class Tuner(Generic[Candidate]):
    """Chooses among `candidates(key)`, best guess first; measured choices are kept per device in Triton's cache folder.

    A file holds choices as text and is read back by comparing with the candidates of today, so that one written by
    another version can only be ignored.
    """

    name: str
    candidates: Callable[[Key], Sequence[Candidate]]
    time: Callable[[Callable[[], object]], float] = triton.testing.do_bench
    _chosen: dict[Key, Candidate] = field(default_factory=dict)
    _loaded: bool = False

    def choose(self, key: Key) -> Candidate:
        """The measured choice for `key` on this device, else the first candidate."""
        if interpreted():
            return self.candidates(key)[0]
        if not self._loaded:
            self._load()
        return self._chosen.get(key) or self.candidates(key)[0]

    def launch(self, key: Key, run: Callable[[Candidate], object]) -> None:
        """`run` with the choice for `key`, or with the next candidate where the device has too little memory for it.

        Raises triton's OutOfResources when no candidate fits.
        """
        from triton.runtime.errors import OutOfResources

        choice = self.choose(key)
        others = [candidate for candidate in self.candidates(key) if candidate != choice]
        for candidate in (choice, *others):
            try:
                run(candidate)
            except OutOfResources:
                if others and candidate != others[-1]:
                    continue
                raise
            if candidate != choice:
                self._chosen[key] = candidate  # of this process: nothing was measured
            return

    def tune(self, key: Key, run: Callable[[Candidate], object]) -> Candidate:
        """Time `run` with every candidate that the device can launch, and remember the fastest.

        Nothing is measured when this device's choice for `key` is known.
        """
        from triton.runtime.errors import OutOfResources

        self.choose(key)
        if key not in self._chosen:
            times: list[tuple[float, Candidate]] = []
            for candidate in self.candidates(key):
                try:
                    times.append((self.time(partial(run, candidate)), candidate))
                except OutOfResources:
                    continue
            self._chosen[key] = min(times, key=lambda timed: timed[0])[1]
            self._save(key)
        return self._chosen[key]

    @property
    def _path(self) -> Path:
        device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "no-device"
        return Path(triton.knobs.cache.dir) / f"lodestar-{self.name}-{device}-triton-{triton.__version__}.json"

    def _load(self) -> None:
        self._loaded = True
        for key, text in self._read().items():
            for candidate in self.candidates(key):
                if repr(candidate) == text:
                    self._chosen[key] = candidate

    def _read(self) -> dict[Key, str]:
        if not self._path.exists():
            return {}
        return {tuple(entry["key"]): entry["choice"] for entry in json.loads(self._path.read_text())}

    def _save(self, key: Key) -> None:
        """Add one choice to what other processes may have written meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        known = self._read() | {key: repr(self._chosen[key])}
        fresh = self._path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps([{"key": list(k), "choice": choice} for k, choice in known.items()], indent=1))
        fresh.replace(self._path)


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)
