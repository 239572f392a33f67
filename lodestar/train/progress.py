"""How a stage tells what it does; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """A listener of one run's stages, called from the thread that works."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins: its name (``"sft"``) and its length in the units of advance; 0 is unknown."""

    def advance(self, amount: int = 1) -> None:
        """So much more of the present stage is done."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Figures of the present stage: ``{"loss": 1.3, "held_out_loss": 1.4}``."""

    def say(self, text: str) -> None:
        """A sentence for whoever watches, such as where people are to judge."""

    def warn(self, text: str) -> None:
        """The same of something that makes the run a lesser one."""


class Silent:
    """A progress that nobody watches."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def advance(self, amount: int = 1) -> None:
        """Nothing."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""
