"""Weights over gRPC, from the process beside the learner that serves its directory."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from pathlib import Path

from lodestar.errors import Unavailable
from lodestar.records import WeightManifest
from lodestar.rpc import convert
from lodestar.rpc.connection import AsyncConnection
from lodestar.v1 import weights_pb2, weights_pb2_grpc

CHUNK_BYTES = 2**20


class GrpcSource:
    """A WeightSource over the learner host's WeightsService."""

    def __init__(self, target: str, run: str, *, fetch_seconds: float = 600.0, tls: Path | None = None) -> None:
        """``tls`` is the folder of our certificate (lodestar.rpc.tls)."""
        self._run = run
        self._fetch_seconds = fetch_seconds
        self._connection = AsyncConnection(target, weights_pb2_grpc.WeightsServiceStub, tls=tls)

    async def watch(self) -> AsyncIterator[WeightManifest]:
        """See WeightSource.watch. The stream has no deadline: keepalive ends it when the learner's host is gone."""
        request = weights_pb2.WatchRequest(run=self._run)
        announcements = self._connection.stream(
            "Watch", request, None, lambda reply: convert.weight_manifest_from_proto(reply.manifest)
        )
        async for manifest in announcements:
            yield manifest

    async def fetch(self, manifest: WeightManifest, folder: Path) -> None:
        """See WeightSource.fetch. Every chunk's checksum and offset is verified."""
        version = convert.weight_version_to_proto(manifest.version)
        for file in manifest.files:
            request = weights_pb2.FetchRequest(version=version, file=file.name)
            written = 0
            with (folder / file.name).open("wb") as out:
                async for chunk in self._connection.stream("Fetch", request, self._fetch_seconds, _as_it_is):
                    if chunk.offset != written or zlib.crc32(chunk.data) != chunk.crc32:
                        raise Unavailable(f"{file.name}: a chunk at {chunk.offset} arrived damaged or out of order")
                    if written + len(chunk.data) > file.bytes:
                        raise Unavailable(f"{file.name}: more than the announced {file.bytes} bytes arrived")
                    out.write(chunk.data)
                    written += len(chunk.data)
            if written != file.bytes:
                raise Unavailable(f"{file.name}: {written} of {file.bytes} bytes arrived")

    async def close(self) -> None:
        """Closes the channel."""
        await self._connection.close()


def _as_it_is(chunk: weights_pb2.FetchResponse) -> weights_pb2.FetchResponse:
    """Chunks are checked and written, not kept: no record stands for them."""
    return chunk
