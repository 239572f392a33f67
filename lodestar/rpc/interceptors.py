"""What happens around every call: errors become statuses with details, and calls are counted.

Both sides of the translation live here: :func:`abort` writes a LodestarError as a status with google.rpc details,
:func:`error_from_status` rebuilds it in the caller.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from lodestar import errors, metrics
from lodestar.errors import InvalidArgument, LodestarError, Unavailable

log = logging.getLogger(__name__)

DOMAIN = "lodestar"
"""google.rpc.ErrorInfo.domain of our errors; its reason is the class name in upper case."""
_DETAILS_KEY = "grpc-status-details-bin"


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Converts errors, counts calls, and answers UNAVAILABLE until the server is ready.

    A LodestarError keeps its status and sentence. Anything else is a defect of ours: INTERNAL without a word about
    the inside, and the traceback in the log.
    """

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

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
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = self._stream(method, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(behaviour, **codecs)
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codecs)

    def _unary(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _counted(method, context):
                try:
                    self._check_ready()
                    return await behaviour(request, context)
                except Exception as error:
                    await _convert(method, context, error)

        return call

    def _stream(self, method: str, behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with _counted(method, context):
                try:
                    self._check_ready()
                    async for response in behaviour(request, context):
                        yield response
                except Exception as error:
                    await _convert(method, context, error)

        return call

    def _check_ready(self) -> None:
        if not self._ready():
            raise Unavailable("the server is loading its model, or stopping; ask again or ask another replica")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: LodestarError) -> NoReturn:
    """Ends a call with the error's status, its sentence, and google.rpc details (ErrorInfo, BadRequest)."""
    code = grpc.StatusCode[error.status]
    status = status_pb2.Status(code=code.value[0], message=str(error))
    _pack(status, error_details_pb2.ErrorInfo(reason=_reason(type(error)), domain=DOMAIN))
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error).removeprefix(f"{error.field}: ")
        )
        _pack(status, error_details_pb2.BadRequest(field_violations=[violation]))
    await context.abort(code, str(error), trailing_metadata=((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("context.abort returned")


def error_from_status(error: Any) -> LodestarError:
    """The LodestarError behind a grpc.RpcError: what the server raised, or the nearest for a status of gRPC's own."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason, field = "", ""
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason if info.domain == DOMAIN else ""
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            field = bad.field_violations[0].field if bad.field_violations else ""
    kind = _KINDS.get(reason) or _BY_STATUS.get(code, LodestarError)
    if issubclass(kind, InvalidArgument):
        return InvalidArgument(field, message.removeprefix(f"{field}: "))
    rebuilt = kind.__new__(kind)  # its __init__ may want what the message already says
    Exception.__init__(rebuilt, message)
    return rebuilt


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


def _pack(status: status_pb2.Status, message: Any) -> None:
    detail = any_pb2.Any()
    detail.Pack(message)
    status.details.append(detail)


def _details(error: Any) -> list[any_pb2.Any]:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            return list(status_pb2.Status.FromString(value).details)
    return []


def _reason(kind: type[LodestarError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


_KINDS: dict[str, type[LodestarError]] = {
    _reason(kind): kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LodestarError)
}
_BY_STATUS: dict[grpc.StatusCode, type[LodestarError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # our own cancellations never get here: a stopping server cancelled it
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.DATA_LOSS: errors.NonFinite,
}
