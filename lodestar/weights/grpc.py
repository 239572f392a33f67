"""Weights over gRPC, from the process beside the learner that serves its directory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from lodestar.client import AsyncWeightsClient
from lodestar.errors import Unavailable
from lodestar.records import TensorFile, WeightManifest, WeightVersion

CHUNK_BYTES = 2**20


class GrpcSource:
    """A WeightSource over the learner host's WeightsService."""

    def __init__(
        self, target: str, run: str, follower: str = "", *, fetch_seconds: float = 600.0, tls: Path | None = None
    ) -> None:
        """``follower`` is our name, ``tls`` the folder of our certificate (lodestar.rpc.tls)."""
        self._run = run
        self._follower = follower
        self._fetch_seconds = fetch_seconds
        self._client = AsyncWeightsClient(target, tls=tls)

    async def watch(self) -> AsyncIterator[WeightManifest]:
        """See WeightSource.watch. The stream has no deadline: keepalive ends it when the learner's host is gone."""
        async for manifest in self._client.watch(self._run, follower=self._follower):
            yield manifest

    async def fetch(self, version: WeightVersion, file: TensorFile) -> AsyncGenerator[bytes, None]:
        """See WeightSource.fetch. Every chunk's checksum and offset is verified."""
        arrived = 0
        async for data in self._client.fetch(version, file.name, timeout=self._fetch_seconds):
            arrived += len(data)
            if arrived > file.bytes:
                raise Unavailable(f"{file.name}: more than the announced {file.bytes} bytes arrived")
            yield data
        if arrived != file.bytes:
            raise Unavailable(f"{file.name}: {arrived} of {file.bytes} bytes arrived")

    async def report(self, version: WeightVersion, refusal: str) -> None:
        """See WeightSource.report. Nobody without a name is asked."""
        if self._follower:
            await self._client.report(self._run, self._follower, version, refusal=refusal)

    async def close(self) -> None:
        """Closes the channel."""
        await self._client.close()
