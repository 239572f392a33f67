"""Errors on the wire: a LodestarError becomes a status with google.rpc details, and is rebuilt in the caller."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from lodestar import errors
from lodestar.errors import InvalidArgument, LodestarError

DOMAIN = "lodestar"
"""google.rpc.ErrorInfo.domain of our errors; its reason is the class name in upper case."""
_DETAILS_KEY = "grpc-status-details-bin"


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


def error_from_rpc(error: Any) -> LodestarError:
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
    if code is grpc.StatusCode.UNAVAILABLE and (refusal := _handshake_refusal(message)):
        return errors.Unauthenticated(refusal)
    kind = _KINDS.get(reason) or _BY_STATUS.get(code, LodestarError)
    if issubclass(kind, InvalidArgument):
        return InvalidArgument(field, message.removeprefix(f"{field}: "))
    rebuilt = kind.__new__(kind)  # its __init__ may want what the message already says
    Exception.__init__(rebuilt, message)
    return rebuilt


def said_by_server(error: Any) -> bool:
    """Whether a server of ours said it, and not this side's gRPC."""
    return bool(_details(error))


def _handshake_refusal(message: str) -> str:
    """What a person can do about a TLS handshake that this side broke off; empty when it did not."""
    for sign, sentence in _HANDSHAKES.items():
        if sign in message:
            return f"{sentence} ({message.rpartition('last error: ')[2]})"
    return ""


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


_HANDSHAKES = {
    "certificate has expired": "the server's certificate has expired: renew it there",
    "certificate is not yet valid": "the server's certificate is not valid yet: compare the clocks",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not signed by the authority in our ca.crt",
    "Hostname Verification Check failed": "the server's certificate does not name the address that was called",
    "WRONG_VERSION_NUMBER": "the server speaks no TLS on this port",
}
"""OpenSSL's words, the special before the general. What a server holds against *our* certificate we do not hear: it
closes the socket, and its log has the reason."""
_KINDS: dict[str, type[LodestarError]] = {
    _reason(kind): kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LodestarError)
}
_BY_STATUS: dict[grpc.StatusCode, type[LodestarError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,  # not by us, who would not ask: the server cancelled it to stop
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.DATA_LOSS: errors.NonFinite,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}
