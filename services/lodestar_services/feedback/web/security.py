"""What every request passes: headers, bounded bodies, cookies, CSRF, and the rate of attempts."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lodestar import metrics
from lodestar_services.feedback.errors import Forbidden, PageError, TooLarge, TooMany
from lodestar_services.feedback.people import SESSION_SECONDS, Person
from lodestar_services.feedback.site import Site

MAX_BODY = 2**20
"""Bytes of a form: a long demonstration, percent-encoded."""
MAX_FIELDS = 200
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Headers:
    """ASGI middleware: HEADERS on every answer that does not set its own."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app = app
        self._headers = dict(HEADERS)
        if secure:
            self._headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in self._headers.items() if n.encode() not in there),
                ]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class Attempts:
    """A bucket per caller: ``burst`` attempts at once, ``per_minute`` of them come back. Old buckets are forgotten."""

    MOST_CALLERS = 100_000

    def __init__(self, burst: int, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._rate, self._clock = burst, per_minute / 60, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def allowed(self, caller: str) -> bool:
        """Whether one more may be made now."""
        return self._left(caller) >= 1

    def count(self, caller: str) -> None:
        """One was made."""
        if len(self._buckets) >= self.MOST_CALLERS:
            self._buckets = {one: state for one, state in self._buckets.items() if self._left(one) < self._burst}
        self._buckets[caller] = (self._left(caller) - 1, self._clock())

    def _left(self, caller: str) -> float:
        left, at = self._buckets.get(caller, (float(self._burst), self._clock()))
        return min(self._burst, left + (self._clock() - at) * self._rate)


async def read_fields(request: Request) -> dict[str, str]:
    """A form's fields, line ends as ``\\n``.

    Raises:
        TooLarge: more bytes or fields than any form here has.
        PageError: no form, not UTF-8, or a field twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise PageError("This address takes the forms of its own pages.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise TooLarge("This is more than can be kept. Shorten what you wrote; go back to find it again.")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, encoding="utf-8", errors="strict"
        )
    except UnicodeError:
        raise PageError("The form is not UTF-8 text.") from None
    except ValueError:
        raise TooLarge("The form has more fields than any of ours.") from None
    fields = {name: value.replace("\r\n", "\n") for name, value in pairs}
    if len(fields) < len(pairs):
        raise PageError("The form has a field twice.")
    return fields


def check_csrf(request: Request, person: Person, fields: dict[str, str]) -> None:
    """
    Raises:
        Forbidden: the form is not of this session's pages.
    """
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none") or not hmac.compare_digest(
        fields.get("csrf", "").encode(), person.csrf.encode()
    ):
        metrics.FEEDBACK_REFUSED.labels("csrf").inc()
        raise Forbidden("This form was not made for you here, or you signed in again since. Nothing was changed.")


def check_rate(attempts: Attempts, caller: str, reason: str) -> None:
    """
    Raises:
        TooMany: the caller has used its attempts up.
    """
    if not attempts.allowed(caller):
        metrics.FEEDBACK_REFUSED.labels(reason).inc()
        raise TooMany("Too many attempts. Wait a minute and try again.")


def caller_of(request: Request) -> str:
    """Where a request comes from; behind a proxy that is trusted (--proxy), what the proxy says."""
    return request.client.host if request.client else "unknown"


def cookie_name(site: Site) -> str:
    """Browsers refuse a __Host- cookie that was not set over TLS by this host for all of it."""
    return "__Host-lodestar" if site.secure else "lodestar"


def set_cookie(site: Site, response: Response, cookie: str) -> None:
    """Signs the browser in."""
    response.set_cookie(
        cookie_name(site),
        cookie,
        max_age=int(SESSION_SECONDS),
        httponly=True,
        samesite="strict",
        secure=site.secure,
        path="/",
    )
