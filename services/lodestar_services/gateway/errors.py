"""Refusals in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}`` and an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lodestar.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LodestarError,
    ModelError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_SECONDS = 1
"""What Retry-After says where asking again may help."""


class ApiError(Exception):
    """``ApiError(400, "n: must be at least 1", param="n")``."""

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """What the caller reads."""
        said = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": said}

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}


def unsupported(name: str, why: str) -> ApiError:
    """A parameter that this server does not honour."""
    return ApiError(400, f"{name}: {why}", param=name, code="unsupported_parameter")


def at_the_door(error: LodestarError) -> ApiError:
    """What the gate said of the caller."""
    if isinstance(error, PermissionDenied):
        return ApiError(403, str(error), code="insufficient_permissions")
    return ApiError(401, str(error), code="invalid_api_key")


def from_policy(error: LodestarError, names: Mapping[str, str]) -> ApiError:
    """What the policy server said, by HTTP status; ``names`` are the caller's words for its fields."""
    if isinstance(error, InvalidArgument):
        param = named(error.field, names)
        message = str(error).removeprefix(f"{error.field}: ")
        code = "context_length_exceeded" if "context" in message else None
        return ApiError(400, f"{param}: {message}" if param else message, param=param or None, code=code)
    if isinstance(error, ModelError | FailedPrecondition):
        return ApiError(400, str(error))
    if isinstance(error, ResourceExhausted):
        return ApiError(429, str(error), kind="rate_limit_error", code="rate_limit_exceeded")
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), kind=SERVER, code="deadline_exceeded")
    if isinstance(error, Unauthenticated | PermissionDenied):  # the gateway's own certificate, not the caller's token
        return ApiError(502, f"the policy server does not let this gateway in: {error}", kind=SERVER)
    if isinstance(error, Unavailable):
        return ApiError(503, f"no policy server answers now: {error}", kind=SERVER, code="unavailable")
    return ApiError(500, str(error), kind=SERVER)


def named(field: str, names: Mapping[str, str]) -> str:
    """A field of GenerateRequest in the caller's words: ``prompt.chat`` → ``messages``."""
    for ours, theirs in names.items():
        if field == ours or field.startswith((f"{ours}[", f"{ours}.")):
            return theirs + field[len(ours) :]
    return field.removeprefix("sampling.")
