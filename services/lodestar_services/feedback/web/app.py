"""The ASGI application: routes, and errors as pages that say what became of what was sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lodestar import metrics
from lodestar.errors import InvalidArgument, LodestarError, Unavailable
from lodestar_services.feedback import pages
from lodestar_services.feedback.errors import NotSignedIn, PageError
from lodestar_services.feedback.site import Site
from lodestar_services.feedback.web.lead import LeadPages
from lodestar_services.feedback.web.security import Headers
from lodestar_services.feedback.web.work import WorkPages

log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


def build(site: Site) -> ASGIApp:
    """The application of one site."""
    work, lead = WorkPages(site), LeadPages(site)
    routes = [
        _route("/", work.home),
        _route("/join/{token}", work.invitation),
        _route("/join", work.join, "POST"),
        _route("/leave", work.leave, "POST"),
        _route("/c/{campaign}", work.work),
        _route("/c/{campaign}", work.answer, "POST"),
        _route("/c/{campaign}/undo", work.undo, "POST"),
        _route("/c/{campaign}/practice/{form}", work.practice),
        _route("/lead", lead.overview),
        _route("/lead/people", lead.people),
        _route("/lead/people", lead.invite, "POST"),
        _route("/lead/people/revoke", lead.revoke, "POST"),
        _route("/lead/c/{campaign}", lead.campaign),
        _route("/lead/c/{campaign}/close", lead.close, "POST"),
        _route("/lead/c/{campaign}/export", lead.export),
        _route("/lead/c/{campaign}/item", lead.item),
        _route("/lead/c/{campaign}/aside", lead.aside, "POST"),
        _route("/lead/c/{campaign}/restore", lead.restore, "POST"),
        _route("/static/{name}", _static),
        _route("/healthz", _health),
    ]
    application = Starlette(
        routes=routes,
        exception_handlers={
            PageError: _page_error,
            LodestarError: _lodestar_error,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
    )
    return Headers(application, secure=site.secure)  # outside of all, so that a failure's page has them too


def _route(path: str, handler: Handler, method: str = "GET") -> Route:
    label = path if method == "GET" else f"{method} {path}"

    async def timed(request: Request) -> Response:
        started = time.monotonic()
        try:
            return await handler(request)
        finally:
            metrics.FEEDBACK_PAGES.labels(label).observe(time.monotonic() - started)

    return Route(path, timed, methods=[method])


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in pages.STATIC:
        raise HTTPException(404)
    return Response(
        pages.static(name),
        media_type=pages.STATIC[name],
        headers={"cache-control": "public, max-age=31536000, immutable"},
    )


async def _health(request: Request) -> Response:
    """The process alone: while the database is away, people had better see the page that says so."""
    return PlainTextResponse("ok\n")


def _message(code: int, title: str, text: str, **values: Any) -> Response:
    page = pages.render("message.html.j2", **{"title": title, "text": text, "again": None, "link": "/"} | values)
    return HTMLResponse(page, code)


async def _page_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)
    title = "Please sign in" if isinstance(error, NotSignedIn) else "That did not work"
    kept = getattr(request.state, "written", None)
    return _message(error.code, title, str(error), written=kept)


async def _lodestar_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Unavailable):
        fields = getattr(request.state, "fields", None)
        again = None if fields is None else (request.url.path, fields)
        text = "The database cannot be reached just now. Nothing was lost"
        text += ": what you sent is below, send it again. It counts once." if again else "; try again in a moment."
        response = _message(503, "One moment", text, again=again, link=request.url.path)
        response.headers["retry-after"] = "5"
        return response
    if isinstance(error, InvalidArgument):
        return _message(422, "That did not work", str(error))
    return _message(409, "That did not work", str(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _message(error.status_code, "Nothing here", "There is no such page.")


async def _internal_error(request: Request, error: Exception) -> Response:
    # The path may hold an invitation's token: the page's name is enough.
    log.error("a page failed", exc_info=error)
    return _message(500, "That did not work", "A fault of ours; the server's log says more. Nothing was counted.")
