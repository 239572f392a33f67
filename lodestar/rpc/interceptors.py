"""What happens around every call: it is let in or refused, counted, and an error becomes a status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from lodestar import metrics
from lodestar.errors import (
    InvalidArgument,
    LodestarError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from lodestar.fair import Flow
from lodestar.rpc.access import Gate
from lodestar.rpc.flows import begin, flow_of
from lodestar.rpc.status import abort

log = logging.getLogger(__name__)

MAX_CALLS = 4096
"""Answered at once, of training and of all outside callers each; the next is refused before its message is parsed."""


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Asks the gate, converts errors, counts calls, and answers UNAVAILABLE until the server is ready.

    A LodestarError keeps its status and sentence. Anything else is a defect of ours: INTERNAL without a word about
    the inside, and the traceback in the log.
    """

    def __init__(self, ready: Callable[[], bool], gate: Gate | None = None) -> None:
        """Without a gate of its own it knows certificates and no tokens."""
        self._ready = ready
        self._gate = gate or Gate()
        self._answering = {True: 0, False: 0}
        """Calls, by whether they are training's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handlers of lodestar services; health and reflection pass untouched."""
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method).removeprefix("/")
        if handler is None or not method.startswith("lodestar."):
            return handler
        if handler.request_streaming:
            raise NotImplementedError(f"{method}: no Lodestar service streams requests")
        # No deserializer for gRPC: it would parse the message of a caller who is not let in.
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            behaviour = self._stream(method, read, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(behaviour, response_serializer=write)
        unary = self._unary(method, read, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=write)

    def _unary(
        self, method: str, read: Callable[[bytes], Any], behaviour: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Any]:
        async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _counted(method, context):
                try:
                    with self._place(self._admit(method, context)):
                        return await behaviour(_parsed(read, data), context)
                except Exception as error:
                    await _convert(method, context, error)

        return call

    def _stream(
        self, method: str, read: Callable[[bytes], Any], behaviour: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], Any]:
        async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with _counted(method, context):
                try:
                    with self._place(self._admit(method, context)):
                        async for response in behaviour(_parsed(read, data), context):
                            yield response
                except Exception as error:
                    await _convert(method, context, error)

        return call

    @contextmanager
    def _place(self, flow: Flow) -> Iterator[None]:
        """Counts a call while it is answered.

        Raises:
            ResourceExhausted: as many are as may be, of training or of all callers.
        """
        side = flow.training
        if self._answering[side] >= MAX_CALLS:
            raise ResourceExhausted(f"{MAX_CALLS} calls are being answered, and no more may be: ask again later")
        self._answering[side] += 1
        try:
            yield
        finally:
            self._answering[side] -= 1

    def _admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Flow:
        try:
            metadata = context.invocation_metadata() or ()
            identity = self._gate.admit(method, context.auth_context(), metadata)
            flow = flow_of(identity, metadata, context.peer())
            begin(flow)
        except (Unauthenticated, PermissionDenied) as error:
            log.warning("refused %s from %s: %s", method, context.peer(), error)
            raise
        if not self._ready():
            raise Unavailable("the server is loading its model, or stopping; ask again or ask another replica")
        return flow


def _parsed(read: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return read(data)
    except DecodeError:
        raise InvalidArgument("", f"the request's {len(data)} bytes are no message of this call") from None


async def _convert(method: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, LodestarError):
        log.error("%s failed", method, exc_info=error)
        error = LodestarError("internal error; the server's log says more")
    await abort(context, error)


@contextmanager
def _counted(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    started = time.monotonic()
    metrics.RPCS_IN_FLIGHT.labels(method).inc()
    code = "OK"
    try:
        yield
    except grpc.aio.AbortError:
        code = _name(context.code())
        raise
    except (asyncio.CancelledError, GeneratorExit):
        remaining = context.time_remaining()
        code = "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
        raise
    finally:
        metrics.RPCS_IN_FLIGHT.labels(method).dec()
        metrics.RPCS.labels(method, code).inc()
        metrics.RPC_SECONDS.labels(method).observe(time.monotonic() - started)


def _name(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next(status.name for status in grpc.StatusCode if status.value[0] == code)
