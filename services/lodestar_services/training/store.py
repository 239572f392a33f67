"""Where saved weights lie: MODEL_ID/weights/NAME for states, MODEL_ID/sampler_weights/NAME for sampling.

What callers name never leaves the folder: both names are checked letter by letter.
"""

from __future__ import annotations

import re
from pathlib import Path

from lodestar.errors import FailedPrecondition, InvalidArgument
from lodestar.files import remove

STATE, SAMPLER = "weights", "sampler_weights"
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_PASSING = "passing-"
"""Begins the names of weights that nobody named."""


def check_model_id(model_id: str) -> None:
    """Raises InvalidArgument for what names no model."""
    if not _MODEL.fullmatch(model_id):
        raise InvalidArgument("model_id", f"{model_id!r}: 1 … 200 letters, digits and .:_- that begin with a letter")


class Store:
    """``Store(Path("runs/training"), kept=4)``."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def new(self, model_id: str, kind: str, name: str, *, overwrite: bool) -> tuple[str, Path]:
        """A path for callers, and where it lies; weights without a name get one.

        Raises:
            InvalidArgument: the name cannot be one.
            FailedPrecondition: something has this name.
        """
        if name.startswith(_PASSING) or (name and not _NAME.fullmatch(name)):
            raise InvalidArgument(
                "name", f"{name!r}: 1 … 200 letters, digits and ._- that begin with a letter, and not with {_PASSING}"
            )
        if not name:
            if kind == STATE:
                raise InvalidArgument("name", "is empty; a state wants a name")
            name = f"{_PASSING}{self._next(model_id):06d}"
        path = f"{model_id}/{kind}/{name}"
        place = self._folder / path
        if place.exists() and not overwrite:
            raise FailedPrecondition(f"{path} is there already; choose another name, or set overwrite")
        return path, place

    def place(self, path: str, kind: str) -> Path:
        """Where a path of callers lies.

        Raises:
            InvalidArgument: it is no path of this kind, or nothing is there.
        """
        parts = path.split("/")
        if len(parts) != 3 or not _MODEL.fullmatch(parts[0]) or not _NAME.fullmatch(parts[2]) or parts[1] != kind:
            raise InvalidArgument("path", f"{path!r} is not of the form MODEL_ID/{kind}/NAME, which SaveWeights gives")
        place = self._folder / path
        if not place.exists():
            gone = f"; of nameless weights the newest {self._kept} are kept" if parts[2].startswith(_PASSING) else ""
            raise InvalidArgument("path", f"{path}: nothing is saved there{gone}")
        return place

    def sweep(self, model_id: str, *, keep: int | None = None) -> None:
        """Deletes a model's oldest nameless weights; all of them with ``keep`` 0."""
        passing = self._passing(model_id)
        for old in passing[: len(passing) - (self._kept if keep is None else keep)]:
            remove(old)

    def _passing(self, model_id: str) -> list[Path]:
        return sorted((self._folder / model_id / SAMPLER).glob(f"{_PASSING}*"))

    def _next(self, model_id: str) -> int:
        passing = self._passing(model_id)
        return int(passing[-1].name.removeprefix(_PASSING)) + 1 if passing else 0
