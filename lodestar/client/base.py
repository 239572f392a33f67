"""What a call and a client are, before anyone waits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

from lodestar.client.arguments import nearest
from lodestar.errors import InvalidArgument

Parameters = ParamSpec("Parameters")
Reply = TypeVar("Reply")
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call(Generic[Reply]):
    """One call, ready to be made."""

    method: str
    """Of the service: ``"Generate"``."""
    request: Any
    read: Callable[[Any], Reply]
    """The record of a reply, or of each message of a stream."""
    timeout: float | None = None
    """Seconds; None is the client's."""
    endless: bool = False
    """A stream without a deadline."""


def built(build: Callable[Parameters, Call[Reply]], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Call[Reply]:
    """The call that arguments make; what makes none is the caller's InvalidArgument: a name that the method does not
    take (with the nearest), or a number that protobuf cannot hold."""
    try:
        return build(*args, **kwargs)
    except TypeError as error:
        signature = inspect.signature(build)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as mismatch:
            unknown = next((name for name in kwargs if name not in signature.parameters), "")
            takes = ", ".join(name for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD)
            hint = nearest(unknown, signature.parameters) if unknown else ""
            raise InvalidArgument(unknown or "request", f"{mismatch}{hint}; it takes {takes}") from error
        raise InvalidArgument("request", f"cannot be sent: {error}") from error
    except ValueError as error:
        raise InvalidArgument("request", f"cannot be sent: {error}") from error


def as_method(build: Callable[..., Any]) -> Callable[[Method], Method]:
    """Gives a client's method the name, the docstring and, after ``self``, the parameters of its function here."""

    def named(method: Method) -> Method:
        functools.update_wrapper(method, build)
        signature = inspect.signature(build)
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        method.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
        return method

    return named


class BaseClient:
    """A connection and a deadline."""

    _stub_class: ClassVar[Any]
    _connection_class: ClassVar[Any]

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout: float = 60.0,
        tls: Path | str | None = None,
        token: str | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Connects when the first call is made; plaintext without ``tls``.

        Args:
            addresses: one or more of the same service.
            timeout: seconds; the deadline of every call that does not bring its own.
            tls: folder with the servers' ca.crt and, where they want a certificate, our tls.crt and tls.key. Changed
                files are used from the next call on.
            token: bearer token of an outside caller; needs tls.
            metadata: keys and values that go with every call.

        Raises:
            ConfigError: no address, TLS files that cannot be used, or a token without tls.
        """
        self._timeout = timeout
        self._connection = type(self)._connection_class(
            addresses, type(self)._stub_class, tls=tls, token=token, metadata=metadata
        )

    def _deadline(self, call: Call[Any]) -> float | None:
        return None if call.endless else call.timeout or self._timeout
