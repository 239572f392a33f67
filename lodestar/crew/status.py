"""RunService: a conductor tells of its run, and hears what is wanted of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from lodestar import metrics
from lodestar.client import LearnerClient
from lodestar.config.serve import Listening
from lodestar.crew.progress import to_proto
from lodestar.local.board import Board
from lodestar.rpc.server import Server
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import run_pb2, run_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
NAME = run_pb2.DESCRIPTOR.services_by_name["RunService"].full_name
ROLE = "run"
"""Its state file is services/run-0.json."""
LOOK_SECONDS = 1.0
STOP_SECONDS = 20.0


class RunServicer(run_pb2_grpc.RunServiceServicer):
    """Translates between protobuf, the board, and a stage's learner."""

    def __init__(self, board: Board, tls: Path | None = None) -> None:
        self._board = board
        self._tls = tls

    async def GetStatus(
        self, request: run_pb2.RunServiceGetStatusRequest, context: Context
    ) -> run_pb2.RunServiceGetStatusResponse:
        return run_pb2.RunServiceGetStatusResponse(progress=to_proto(self._board))

    async def Watch(
        self, request: run_pb2.RunServiceWatchRequest, context: Context
    ) -> AsyncIterator[run_pb2.RunServiceWatchResponse]:
        seen = None
        while True:
            if (progress := to_proto(self._board)) != seen:
                seen = progress
                yield run_pb2.RunServiceWatchResponse(progress=progress)
            await asyncio.sleep(LOOK_SECONDS)

    async def Pause(self, request: run_pb2.RunServicePauseRequest, context: Context) -> run_pb2.RunServicePauseResponse:
        held = await self._steer(LearnerClient.pause, "paused on request")
        effect = "the learner holds after the step in progress; LearnerService.Resume goes on" if held else ENDS
        return run_pb2.RunServicePauseResponse(effect=effect)

    async def Stop(self, request: run_pb2.RunServiceStopRequest, context: Context) -> run_pb2.RunServiceStopResponse:
        ended = await self._steer(LearnerClient.stop, "stopped on request")
        effect = "the learner ends after the step in progress, and the stages after it follow" if ended else ENDS
        return run_pb2.RunServiceStopResponse(effect=effect)

    async def _steer(self, ask: Callable[[LearnerClient], Any], reason: str) -> bool:
        """Asks the learner where a stage serves one; else the run ends between stages."""
        address = self._board.learner
        if address is None:
            self._board.ending = reason
            return False
        with LearnerClient(address, tls=self._tls) as learner:
            await asyncio.to_thread(ask, learner)
        self._board.say(f"the learner was {reason}")
        return True


ENDS = "the run ends when the stage in progress is done; started again it goes on"


@contextlib.contextmanager
def served(board: Board, folder: Path, listening: Listening) -> Iterator[str]:
    """Serves the board on a thread of its own, with the stages' progress as metrics; yields the address.

    Raises:
        ConfigError: a port is taken, the address needs TLS, or TLS files or tokens cannot be used.
    """
    loop = asyncio.new_event_loop()
    started = threading.Event()
    ended = asyncio.Event()
    outcome: list[str | BaseException] = []

    async def serve() -> None:
        add = partial(run_pb2_grpc.add_RunServiceServicer_to_server, RunServicer(board, listening.tls))
        spec = ServerSpec.of_listening(ROLE, folder, listening, [Service(NAME, add)], drain_seconds=0.0)
        server = Server(spec)
        try:
            state = await server.start()
            await server.become_ready()
            outcome.append(f"127.0.0.1:{state.port}")
        except BaseException as error:
            outcome.append(error)
            raise
        finally:
            started.set()
        try:
            while not ended.is_set():
                export(board)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), LOOK_SECONDS)
            export(board)
        finally:
            await server.stop()

    def run() -> None:
        with contextlib.suppress(BaseException):  # it is raised where the conductor waits
            loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, name="run-service", daemon=True)
    thread.start()
    started.wait()
    if isinstance(outcome[0], BaseException):
        thread.join(STOP_SECONDS)
        raise outcome[0]
    try:
        yield outcome[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(STOP_SECONDS)


def export(board: Board) -> None:
    """The board's stages as metrics."""
    for row in board.stages:
        metrics.RUN_STAGE_RUNNING.labels(row.name).set(row.state == "running")
        metrics.RUN_STAGE_FAILED.labels(row.name).set(row.state == "failed")
        metrics.RUN_STAGE_SECONDS.labels(row.name).set(row.elapsed)
        if row.fraction is not None:
            metrics.RUN_STAGE_PROGRESS.labels(row.name).set(row.fraction)
