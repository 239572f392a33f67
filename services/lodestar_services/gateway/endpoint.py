"""One route from its first byte to its last: let in, bounded, answered, counted, given up when nobody listens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from lodestar import metrics
from lodestar.config import GatewayConfig
from lodestar.errors import LodestarError, PermissionDenied, Unauthenticated
from lodestar.rpc.access import Gate, Tokens
from lodestar_services.gateway.errors import SERVER, ApiError, at_the_door, from_policy

log = logging.getLogger(__name__)
METHOD = "lodestar.v1.PolicyService/Generate"
"""Whoever may call this may use the gateway."""
TRAINING_METHOD = "lodestar.v1.TrainingService/ForwardBackward"
"""And this, its training."""
KEY_PREFIX = "tml-"
"""The tinker SDK takes no key that begins otherwise: it stands before a token."""
_TLS = {"transport_security_type": [b"ssl"]}
Answer = Callable[[Any, "Outgoing"], Coroutine[Any, Any, None]]


class Left(Exception):
    """The caller closed the connection."""


class Door:
    """Who may come in, how many at once, with how much."""

    def __init__(self, section: GatewayConfig, tokens: Path | None, method: str = METHOD) -> None:
        """Without tokens nobody is asked for one: an SDK's placeholder key is let in as anybody is.

        method: who may call this is let in.
        """
        self.section = section
        self.inside = 0
        self._method = method
        self._gate = None if tokens is None else Gate(Tokens(tokens))

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """
        Raises:
            ApiError: no token, one that is not known, one without this right, or too many are inside.
        """
        if self._gate is not None:
            value = headers.get(b"authorization", b"").decode("latin-1")
            if not value and (key := headers.get(b"x-api-key", b"").decode("latin-1")):
                value = f"Bearer {key.removeprefix(KEY_PREFIX)}"
            metadata = [("authorization", value)] if value else []
            try:
                self._gate.admit(self._method, _TLS, metadata)
            except (Unauthenticated, PermissionDenied) as error:
                raise at_the_door(error) from None
        if self.inside >= self.section.max_requests:
            message = f"{self.inside} requests are being answered, and at most {self.section.max_requests} may be"
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded")

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body.

        Raises:
            ApiError: it is larger than may be.
            Left: it never came whole.
        """
        most, body = self.section.max_body_bytes, bytearray()
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise ApiError(413, f"the body has {int(length)} bytes; at most {most} are taken", code="body_too_large")
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Left
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        return bytes(body)


class Outgoing:
    """Where an answer goes: nothing is sent before the first event, so that a refusal still has its status."""

    def __init__(self, send: Send, path: Mapping[str, Any]) -> None:
        self._send = send
        self.path = path
        """Parts of the route's path."""
        self.names: Mapping[str, str] = {}
        """Fields of GenerateRequest in the caller's words."""
        self.status = 0
        """Of the answer; 0 before it began."""

    async def event(self, event: bytes) -> None:
        """One event of a stream; waits while the caller does not read."""
        if not self.status:
            await self._start(200, b"text/event-stream; charset=utf-8", {"cache-control": "no-store"})
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self) -> None:
        """A stream's."""
        await self._send({"type": "http.response.body", "body": b""})

    async def whole(self, body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """A JSON object."""
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        await self.data(data, b"application/json", status, headers)

    async def data(self, data: bytes, kind: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Bytes of a content type."""
        await self._start(status, kind, {"content-length": str(len(data)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": data})

    async def refuse(self, error: ApiError) -> None:
        """An error as the whole answer, or as a stream's last event."""
        if not self.status:
            await self.whole(error.body, error.status, error.headers)
            return
        await self.event(b"data: " + json.dumps(error.body).encode() + b"\n\n")
        await self.end()

    async def _start(self, status: int, kind: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *encoded]}
        await self._send(start)


class Endpoint:
    """An ASGI application: ``Endpoint("completions", door, answers.complete)``."""

    def __init__(self, route: str, door: Door, answer: Answer, *, raw: bool = False) -> None:
        """``raw``: the answer takes the body's bytes, and not what they say as JSON."""
        self._route = route
        self._door = door
        self._answer = answer
        self._raw = raw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        started = time.monotonic()
        out = Outgoing(send, scope.get("path_params", {}))
        status: int | None = None
        metrics.GATEWAY_IN_FLIGHT.inc()
        try:
            await self._let_in(scope, receive, out)
        except Left:
            status = 499
        except ApiError as error:
            status = error.status
            await out.refuse(error)
        except LodestarError as error:
            refusal = from_policy(error, out.names)
            status = refusal.status
            await out.refuse(refusal)
        except Exception:
            status = 500
            log.exception("%s failed", self._route)
            await out.refuse(ApiError(500, "a fault of ours; the server's log says more", kind=SERVER))
        finally:
            metrics.GATEWAY_IN_FLIGHT.dec()
            metrics.GATEWAY_REQUESTS.labels(self._route, str(status or out.status)).inc()
            metrics.GATEWAY_SECONDS.labels(self._route).observe(time.monotonic() - started)

    async def _let_in(self, scope: Scope, receive: Receive, out: Outgoing) -> None:
        headers = dict(scope["headers"])
        self._door.admit(headers)
        self._door.inside += 1
        try:
            data = await self._door.read(headers, receive)
            body = data if self._raw else _json(data) if scope["method"] == "POST" else None
            await _while_connected(self._answer(body, out), receive)
        finally:
            self._door.inside -= 1


async def _while_connected(answering: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Awaits the answer, and cancels it when the caller leaves.

    Raises:
        Left: that happened.
    """
    work, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Left
        work.result()
    finally:
        await _ended(work, gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
