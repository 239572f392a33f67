"""What a policy server needs from wherever weights come from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from lodestar.records import WeightManifest


class WeightSource(Protocol):
    """Announcements and bytes of weight versions: over gRPC, or from a directory."""

    def watch(self) -> AsyncIterator[WeightManifest]:
        """The present version at once, then each announcement, backwards too. Ends or raises Unavailable when lost."""

    async def fetch(self, manifest: WeightManifest, folder: Path) -> None:
        """Writes the version's files into the folder.

        Raises:
            Unavailable: the version is gone or the source cannot be reached.
        """

    async def close(self) -> None:
        """Ends the connection."""
