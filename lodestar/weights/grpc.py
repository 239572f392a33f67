"""Weights over gRPC, from the process beside the learner that serves its directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from lodestar.client import AsyncWeightsClient
from lodestar.errors import Unavailable
from lodestar.records import WeightManifest

CHUNK_BYTES = 2**20


class GrpcSource:
    """A WeightSource over the learner host's WeightsService."""

    def __init__(self, target: str, run: str, *, fetch_seconds: float = 600.0, tls: Path | None = None) -> None:
        """``tls`` is the folder of our certificate (lodestar.rpc.tls)."""
        self._run = run
        self._fetch_seconds = fetch_seconds
        self._client = AsyncWeightsClient(target, tls=tls)

    async def watch(self) -> AsyncIterator[WeightManifest]:
        """See WeightSource.watch. The stream has no deadline: keepalive ends it when the learner's host is gone."""
        async for manifest in self._client.watch(self._run):
            yield manifest

    async def fetch(self, manifest: WeightManifest, folder: Path) -> None:
        """See WeightSource.fetch. Every chunk's checksum and offset is verified."""
        for file in manifest.files:
            written = 0
            with (folder / file.name).open("wb") as out:
                async for data in self._client.fetch(manifest.version, file.name, timeout=self._fetch_seconds):
                    if written + len(data) > file.bytes:
                        raise Unavailable(f"{file.name}: more than the announced {file.bytes} bytes arrived")
                    written += out.write(data)
            if written != file.bytes:
                raise Unavailable(f"{file.name}: {written} of {file.bytes} bytes arrived")

    async def close(self) -> None:
        """Closes the channel."""
        await self._client.close()
