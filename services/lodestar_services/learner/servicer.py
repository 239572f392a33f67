"""LearnerService: translates between protobuf and the status board and controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from lodestar.errors import Unavailable
from lodestar.records import RunStatus
from lodestar.rpc import convert
from lodestar.v1 import learner_pb2, learner_pb2_grpc
from lodestar_services.learner.status import Controls, StatusBoard

Context = grpc.aio.ServicerContext[Any, Any]
_CHECKPOINT_SECONDS = 600.0
"""How long Checkpoint waits for the step in progress when the caller set no deadline."""


class LearnerServicer(learner_pb2_grpc.LearnerServiceServicer):
    """Watch and steer a PPO run."""

    def __init__(self, board: StatusBoard, controls: Controls) -> None:
        self._board = board
        self._controls = controls

    async def GetStatus(
        self, request: learner_pb2.LearnerServiceGetStatusRequest, context: Context
    ) -> learner_pb2.LearnerServiceGetStatusResponse:
        return learner_pb2.LearnerServiceGetStatusResponse(status=self._status())

    async def WatchStatus(
        self, request: learner_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[learner_pb2.WatchStatusResponse]:
        async for status in self._board.watch():
            yield learner_pb2.WatchStatusResponse(status=convert.run_status_to_proto(status))

    async def Pause(
        self, request: learner_pb2.LearnerServicePauseRequest, context: Context
    ) -> learner_pb2.LearnerServicePauseResponse:
        self._controls.pause()
        return learner_pb2.LearnerServicePauseResponse(status=self._status())

    async def Resume(
        self, request: learner_pb2.LearnerServiceResumeRequest, context: Context
    ) -> learner_pb2.LearnerServiceResumeResponse:
        self._controls.resume()
        return learner_pb2.LearnerServiceResumeResponse(status=self._status())

    async def Checkpoint(
        self, request: learner_pb2.CheckpointRequest, context: Context
    ) -> learner_pb2.CheckpointResponse:
        timeout = context.time_remaining() or _CHECKPOINT_SECONDS
        try:
            path = await asyncio.to_thread(self._controls.request_checkpoint, timeout)
        except TimeoutError as error:
            raise Unavailable(f"no checkpoint yet: {error}; ask again with a longer deadline") from error
        return learner_pb2.CheckpointResponse(path=str(path), status=self._status())

    async def Stop(self, request: learner_pb2.StopRequest, context: Context) -> learner_pb2.StopResponse:
        self._controls.stop()
        return learner_pb2.StopResponse(status=self._status())

    def _status(self) -> learner_pb2.RunStatus:
        status: RunStatus = self._board.status
        return convert.run_status_to_proto(status)
