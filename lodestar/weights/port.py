"""What a policy server needs from wherever weights come from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from lodestar.records import TensorFile, WeightManifest, WeightVersion


class WeightSource(Protocol):
    """Announcements and bytes of weight versions: over gRPC, or from a directory."""

    def watch(self) -> AsyncIterator[WeightManifest]:
        """The present version at once, then each announcement, backwards too. Ends or raises Unavailable when lost."""

    def fetch(self, version: WeightVersion, file: TensorFile) -> AsyncGenerator[bytes, None]:
        """A version's file, in pieces.

        Raises:
            Unavailable: the version is gone, the source cannot be reached, or other bytes than announced arrived.
        """

    async def report(self, version: WeightVersion, refusal: str) -> None:
        """Tells that an announced version is served, or why it is not.

        Raises:
            Unavailable: the source cannot be reached.
        """

    async def close(self) -> None:
        """Ends the connection."""
