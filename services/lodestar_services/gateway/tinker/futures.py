"""What was asked for and is not fetched yet: the SDK sends a request, gets a number, and comes back for the result.

A number that comes again is the same request, sent again after a broken connection: it is done once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from lodestar.errors import FailedPrecondition, InvalidArgument, LodestarError, ModelError, NonFinite
from lodestar_services.gateway.errors import ApiError
from lodestar_services.gateway.tinker.wire import error_to

log = logging.getLogger(__name__)
Result = bytes | Mapping[str, Any]
"""Protobuf, or JSON."""
FETCHED_SECONDS = 300.0
"""How long a result that was fetched can be fetched again."""
_USERS = (InvalidArgument, FailedPrecondition, ModelError, NonFinite)


@dataclass(eq=False)
class _Future:
    task: asyncio.Task[Result]
    session: str
    fetched: float | None = field(default=None)
    """When, by the monotonic clock."""


class Futures:
    """``futures.start("s:train:0:3", "s", work())``, then ``await futures.result("s:train:0:3", 20.0)``."""

    def __init__(self) -> None:
        self._futures: dict[str, _Future] = {}

    def start(self, request_id: str, session: str, work: Coroutine[Any, Any, Result]) -> None:
        """Begins, unless it was begun before."""
        if request_id in self._futures:
            work.close()
            return
        self._futures[request_id] = _Future(asyncio.create_task(_told(work), name=request_id), session)

    async def result(self, request_id: str, seconds: float) -> Result | None:
        """The result, or None when there is none within ``seconds``.

        Raises:
            ApiError: nobody asked for it, or its session is over.
        """
        future = self._futures.get(request_id)
        if future is None:
            raise ApiError(404, f"request_id: {request_id} is not known here, or its session is over")
        done, _ = await asyncio.wait([future.task], timeout=seconds)
        if not done:
            return None
        future.fetched = time.monotonic()
        if future.task.cancelled():
            return error_to("the request was cancelled", users=True)
        return future.task.result()

    def cancel(self, request_id: str) -> None:
        """Gives a request up; unknown ones are over already."""
        if request_id in self._futures:
            self._futures[request_id].task.cancel()

    async def end(self, session: str | None = None) -> None:
        """Gives up what a session asked for, or everybody."""
        ours = {name: one for name, one in self._futures.items() if session is None or one.session == session}
        for name, one in ours.items():
            one.task.cancel()
            del self._futures[name]
        await asyncio.gather(*(one.task for one in ours.values()), return_exceptions=True)

    def sweep(self) -> None:
        """Forgets results that were fetched long ago."""
        since = time.monotonic() - FETCHED_SECONDS
        old = [name for name, one in self._futures.items() if one.fetched is not None and one.fetched < since]
        for name in old:
            del self._futures[name]


async def _told(work: Coroutine[Any, Any, Result]) -> Result:
    """A failure is a result, too."""
    try:
        return await work
    except ApiError as error:
        return error_to(str(error), users=error.status < 500)
    except LodestarError as error:
        return error_to(str(error), users=isinstance(error, _USERS))
    except Exception:
        log.exception("a tinker request failed")
        return error_to("a fault of ours; the server's log says more", users=False)
