"""The process beside the learner that serves its published weights: ``python -m … ROOT RUN HOST PORT``.

Consumes one line on standard input per announcement; ends when standard input does. Prints its port once bound.
"""

from __future__ import annotations

import asyncio
import sys
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio

from lodestar.errors import FailedPrecondition, InvalidArgument, Unavailable
from lodestar.records import ModelInfo, WeightManifest
from lodestar.rpc import convert
from lodestar.rpc.interceptors import CallInterceptor
from lodestar.v1 import weights_pb2, weights_pb2_grpc
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.grpc import CHUNK_BYTES

_BIND_SECONDS = 10.0


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Watch and Fetch over a WeightDirectory."""

    def __init__(self, root: Path, run: str) -> None:
        self._directory = WeightDirectory(root)
        self._run = run
        self._announced = asyncio.Condition()

    async def announce(self) -> None:
        """Wakes the watchers."""
        async with self._announced:
            self._announced.notify_all()

    async def Watch(
        self, request: weights_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[weights_pb2.WatchResponse]:
        if request.run != self._run:
            raise FailedPrecondition(f"run: this learner drives {self._run!r}, not {request.run!r}")
        sent: WeightManifest | None = None
        while True:
            manifest = self._directory.announced()
            if manifest is not None and (sent is None or manifest.version != sent.version):
                sent = manifest
                yield weights_pb2.WatchResponse(
                    model=convert.model_info_to_proto(self._model(manifest)),
                    manifest=convert.weight_manifest_to_proto(manifest),
                )
                continue
            async with self._announced:
                await self._announced.wait()

    async def Fetch(
        self, request: weights_pb2.FetchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[weights_pb2.FetchResponse]:
        manifest = self._directory.announced()
        version = convert.weight_version_from_proto(request.version)
        if manifest is None or manifest.version != version:
            raise Unavailable(f"version: step {version.step} is no longer announced; watch for the present one")
        sizes = {file.name: file.bytes for file in manifest.files}
        if request.file not in sizes:
            raise InvalidArgument("file", f"{request.file!r} is none of {', '.join(sizes)}")
        if request.offset > sizes[request.file]:
            raise InvalidArgument("offset", f"{request.offset} is beyond the file's {sizes[request.file]} bytes")
        model = convert.model_info_to_proto(self._model(manifest))
        offset = request.offset
        with (self._directory.folder(version) / request.file).open("rb", buffering=0) as file:
            file.seek(offset)
            while data := file.read(CHUNK_BYTES):
                yield weights_pb2.FetchResponse(model=model, data=data, offset=offset, crc32=zlib.crc32(data))
                offset += len(data)

    def _model(self, manifest: WeightManifest) -> ModelInfo:
        return ModelInfo(self._run, manifest.version, manifest.tokenizer_hash)


async def _bound(server: grpc.aio.Server, host: str, port: int) -> int:
    """Binds, waiting for the port that a predecessor, whose learner was killed, is about to free."""
    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            return server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def serve(root: Path, run: str, host: str, port: int) -> None:
    """Serves until standard input ends."""
    server = grpc.aio.server(
        interceptors=[CallInterceptor(ready=lambda: True)],
        options=[("grpc.so_reuseport", 0), ("grpc.keepalive_time_ms", 20_000)],
    )
    servicer = WeightsServicer(root, run)
    weights_pb2_grpc.add_WeightsServiceServicer_to_server(servicer, server)
    bound = await _bound(server, host, port)
    await server.start()
    print(bound, flush=True)  # the protocol with WeightPublisher, not a log line
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        await servicer.announce()
    await server.stop(grace=None)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
