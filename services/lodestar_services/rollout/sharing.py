"""Items of several tickets in one call.

A call costs a server's event loop more than a small model needs for a sequence. So calls to one service are few at a
time, and what comes meanwhile waits and goes together: an idle server gets a ticket at once, a busy one larger calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lodestar.errors import LodestarError

Item = TypeVar("Item")
Result = TypeVar("Result")

CALLS = 2
"""At a time, to all replicas of a service."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    items: Sequence[Item]
    tokens: int
    results: asyncio.Future[Sequence[Result]]


class SharedCalls(Generic[Item, Result]):
    """``scores = await SharedCalls(score, tokens_of=…, call_tokens=8192).submit(items)``."""

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        tokens_of: Callable[[Item], int],
        call_tokens: int,
    ) -> None:
        """
        Args:
            call: one result per item, in order.
            tokens_of: how large an item is.
            call_tokens: how many tokens go in one call; a submission that holds more goes alone.
        """
        self._call = call
        self._tokens_of = tokens_of
        self._call_tokens = call_tokens
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, items: Sequence[Item]) -> Sequence[Result]:
        """One result per item. An error of a shared call is nobody's until each submission was tried alone.

        Raises:
            LodestarError: what the call raises for these items alone.
        """
        results: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(items, sum(map(self._tokens_of, items)), results))
        self._start()
        return await results

    def _start(self) -> None:
        while len(self._calls) < CALLS and (together := self._take()):
            task = asyncio.create_task(self._run(together))
            self._calls.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            self._start()

    def _take(self) -> list[_Waiting[Item, Result]]:
        """Those that go together; the ones whose ticket was given up are dropped."""
        together: list[_Waiting[Item, Result]] = []
        tokens = 0
        while self._waiting and (not together or tokens + self._waiting[0].tokens <= self._call_tokens):
            first = self._waiting.popleft()
            if not first.results.done():
                together.append(first)
                tokens += first.tokens
        return together

    async def _run(self, together: list[_Waiting[Item, Result]]) -> None:
        try:
            items = [item for waiting in together for item in waiting.items]
            results = await self._call(items)
            if len(results) != len(items):
                raise LodestarError(f"{len(results)} results came for {len(items)} items")
        except Exception as error:  # whoever waits gets it
            if len(together) > 1:
                for waiting in together:
                    await self._run([waiting])
            elif not together[0].results.done():
                together[0].results.set_exception(error)
            return
        start = 0
        for waiting in together:
            end = start + len(waiting.items)
            if not waiting.results.done():
                waiting.results.set_result(results[start:end])
            start = end
