"""The process beside the learner that serves its published weights.

Consumes its LearnerTask as a line of JSON on standard input and then one line per announcement; ends when standard
input does. Prints ``{"port": …}`` once it is bound, ``{"sent": …}``, in bytes, twice a second: a sign of life, and
``{"digest": …, "followers": {NAME: null, or why it refuses}}`` when a follower comes, goes or reports.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from lodestar.config import LearnerTask
from lodestar.errors import FailedPrecondition, InvalidArgument, Unavailable
from lodestar.records import ModelInfo, WeightManifest
from lodestar.rpc import convert
from lodestar.rpc.server import Server, configure_logging
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import weights_pb2, weights_pb2_grpc
from lodestar.weights.directory import WeightDirectory
from lodestar.weights.grpc import CHUNK_BYTES

NAME = weights_pb2.DESCRIPTOR.services_by_name["WeightsService"].full_name
_BIND_SECONDS = 10.0
_REPORT_SECONDS = 0.5
MAX_REFUSAL = 2000
"""Characters of a follower's words that are kept."""


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Watch and Fetch over a WeightDirectory, and what those who watch report."""

    def __init__(self, root: Path, run: str) -> None:
        self._directory = WeightDirectory(root)
        self._run = run
        self._announced = asyncio.Condition()
        self._announcements = 0
        self._sent = 0
        self._followers: dict[str, str | None] = {}
        """Why each refuses what is announced: empty when it serves it, None before it reports."""
        self._streams: Counter[str] = Counter()

    def take_sent(self) -> int:
        """Bytes of weights sent since the last call of this."""
        sent, self._sent = self._sent, 0
        return sent

    async def announce(self) -> None:
        """Wakes the watchers."""
        async with self._announced:
            self._announcements += 1
            self._followers = dict.fromkeys(self._followers)
            self._announced.notify_all()

    async def Watch(
        self, request: weights_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[weights_pb2.WatchResponse]:
        self._check_run(request.run)
        with self._following(request.follower):
            sent = -1
            while True:
                manifest = self._directory.announced() if sent < self._announcements else None
                sent = self._announcements
                if manifest is not None:
                    yield weights_pb2.WatchResponse(
                        model=convert.model_info_to_proto(self._model(manifest)),
                        manifest=convert.weight_manifest_to_proto(manifest),
                    )
                async with self._announced:
                    while sent == self._announcements:
                        await self._announced.wait()

    async def Report(
        self, request: weights_pb2.ReportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> weights_pb2.ReportResponse:
        self._check_run(request.run)
        manifest = self._directory.announced()
        if manifest is None:
            raise Unavailable("nothing is announced yet")
        if request.follower not in self._followers:
            raise FailedPrecondition(f"follower: {request.follower[:80]!r} does not watch")
        if convert.weight_version_from_proto(request.version) == manifest.version:
            self._followers[request.follower] = request.refusal[:MAX_REFUSAL]
            self._tell_followers()
        return weights_pb2.ReportResponse(model=convert.model_info_to_proto(self._model(manifest)))

    def _check_run(self, run: str) -> None:
        if run != self._run:
            raise FailedPrecondition(f"run: this learner drives {self._run!r}, not {run!r}")

    @contextmanager
    def _following(self, follower: str) -> Iterator[None]:
        """Counts a stream of a follower's; it may open the next one before the last has ended."""
        if not follower:
            yield
            return
        self._streams[follower] += 1
        self._followers.setdefault(follower, None)
        try:
            self._tell_followers()
            yield
        finally:
            self._streams[follower] -= 1
            if not self._streams[follower]:
                del self._streams[follower], self._followers[follower]
                self._tell_followers()

    def _tell_followers(self) -> None:
        if (manifest := self._directory.announced()) is not None:
            _tell(digest=manifest.version.digest, followers=self._followers)

    async def Fetch(
        self, request: weights_pb2.FetchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[weights_pb2.FetchResponse]:
        manifest = self._directory.announced()
        version = convert.weight_version_from_proto(request.version)
        chain = manifest.chain if manifest is not None else ()
        sizes = {file.name: file.bytes for one in chain if one.version == version for file in one.files}
        if manifest is None or not sizes:
            raise Unavailable(f"version: step {version.step} is no longer announced; watch for the present one")
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
                self._sent += len(data)

    def _model(self, manifest: WeightManifest) -> ModelInfo:
        return ModelInfo(self._run, manifest.version, manifest.tokenizer_hash)


async def serve(task: LearnerTask) -> None:
    """Serves until standard input ends; the lines that come meanwhile are announcements."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    servicer = WeightsServicer(task.state / "weights", task.run)
    add = partial(weights_pb2_grpc.add_WeightsServiceServicer_to_server, servicer)
    spec = ServerSpec.of(task, task.section, [Service(NAME, add)], role="weights")
    # Its figures reach Prometheus through the learner; the port may still be a killed predecessor's.
    spec = dataclasses.replace(
        spec, metrics_port=None, caller_port=None, health_port=None, bind_seconds=_BIND_SECONDS, drain_seconds=0.0
    )
    server = Server(spec)
    state = await server.start()
    try:
        await server.become_ready()
        _tell(port=state.port)
        reporting = asyncio.create_task(_report(servicer))
        while await lines.readline():
            await servicer.announce()
        reporting.cancel()
    finally:
        await server.stop()


async def _report(servicer: WeightsServicer) -> None:
    """Tells the learner how many bytes went out, and that the event loop runs."""
    while True:
        await asyncio.sleep(_REPORT_SECONDS)
        _tell(sent=servicer.take_sent())


def _tell(**figure: Any) -> None:
    """One line of the protocol with WeightPublisher, not a log line."""
    print(json.dumps(figure), flush=True)


def main() -> None:
    """Reads the options, which may hold secrets and so do not stand on the command line."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:  # unbuffered: the rest is the loop's
        task = LearnerTask.model_validate_json(lines.readline())
    configure_logging("weights")
    asyncio.run(serve(task))


if __name__ == "__main__":
    main()
