"""Compute beside an event loop: one thread per model, and batches made by tokens.

The event loop takes requests while the thread computes, so the batch after the present one fills by itself; the
short wait matters to an idle server only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Generic, ParamSpec, TypeVar

from lodestar import manners, metrics
from lodestar.cores import compute_threads
from lodestar.errors import LodestarError, ResourceExhausted
from lodestar.fair import FairLine, Shares
from lodestar.liveness import working
from lodestar.rpc import flows

AWAY = 0.25
"""What a side's short absence leaves to the other of a batch, of what its presence would: nothing interrupts a batch,
and the side that comes back waits for its end."""
Parameters = ParamSpec("Parameters")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ComputeThread:
    """The one thread that may touch a model: ``await compute.run(forward, batch)``; a polite one may stand in for it,
    and never works beside it (lodestar.manners)."""

    def __init__(self, name: str, threads: int | None = None, *, waits: bool = False) -> None:
        """
        Args:
            threads: how many of torch's own the model's operations may spread over; None leaves torch alone.
            waits: whether what it runs may sleep for long by right, waiting for others (lodestar.liveness).
        """
        self._name = "" if waits else name
        self._turn = threading.Lock()
        polite = manners.niceness() if threads is not None else 0
        self._others = manners.Others() if polite else None

        def begin(niceness: int) -> None:
            if niceness:
                manners.nice_thread(niceness)
            if threads is not None:
                compute_threads(threads)

        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin, initargs=(0,))
        self._polite = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-polite", initializer=begin, initargs=(polite,))

    async def run(
        self,
        function: Callable[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """The function's result, computed on the thread after what was asked for before it."""
        loop = asyncio.get_running_loop()
        polite = self._others is not None and self._others.cores() < manners.OTHERS
        thread = self._polite if polite else self._executor
        return await loop.run_in_executor(thread, lambda: self._work(function, *args, **kwargs))

    def _work(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        with self._turn, working(self._name) if self._name else nullcontext():
            return function(*args, **kwargs)

    def close(self) -> None:
        """Waits for the computation in progress and drops what is queued."""
        for thread in (self._executor, self._polite):
            thread.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True, eq=False)
class _Queued(Generic[Item, Result]):
    item: Item
    tokens: int
    future: asyncio.Future[Result]
    arrived: float = field(default_factory=time.monotonic)


class TokenBatcher(Generic[Item, Result]):
    """Dynamic batches of at most ``batch_tokens`` tokens: training's and callers' in their shares, among callers the
    one served least first, each one's own in order of arrival (lodestar.fair).

    Items of one call may share a batch with other calls' and may be spread over several. A cancelled call's
    queued items are dropped. ``compute_batch`` runs on the compute thread and returns, per item, a result or the
    error that only this item's caller gets; an exception out of it goes to every caller of the batch.
    """

    def __init__(
        self,
        compute: ComputeThread,
        compute_batch: Callable[[Sequence[Item]], Sequence[Result | LodestarError]],
        *,
        tokens_of: Callable[[Item], int],
        batch_tokens: int,
        wait_seconds: float,
        max_queued_tokens: int,
        training_share: float = 0.5,
    ) -> None:
        self._compute = compute
        self._compute_batch = compute_batch
        self._tokens_of = tokens_of
        self._batch_tokens = batch_tokens
        self._wait_seconds = wait_seconds
        self._max_queued_tokens = max_queued_tokens
        self._queue: FairLine[_Queued[Item, Result]] = FairLine(lambda entry: entry.tokens)
        self._shares = Shares(training_share, AWAY)
        self._full = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """One result per item, in order.

        Raises:
            ResourceExhausted: the queue of training, or of all callers, has no room for all of them.
            LodestarError: the first of the items' own errors.
        """
        queued = self._admit(items)
        try:
            return list(await asyncio.gather(*(entry.future for entry in queued)))
        finally:
            for entry in queued:
                entry.future.cancel()
            self._forget_cancelled()

    def _admit(self, items: Sequence[Item]) -> list[_Queued[Item, Result]]:
        loop = asyncio.get_running_loop()
        queued = [_Queued[Item, Result](item, self._tokens_of(item), loop.create_future()) for item in items]
        tokens = sum(entry.tokens for entry in queued)
        if tokens > self._max_queued_tokens:
            raise ResourceExhausted(
                f"the call holds {tokens} tokens, more than this server ever queues "
                f"({self._max_queued_tokens}): split it"
            )
        flow = flows.present()
        held = self._queue.tokens[flow.training]
        if held + tokens > self._max_queued_tokens:
            raise ResourceExhausted(
                f"{held} tokens are queued and at most {self._max_queued_tokens} may be: "
                "ask again later or add replicas"
            )
        for entry in queued:
            self._queue.push(flow, entry)
        self._count()
        if self._queue and self._worker is None:
            self._worker = loop.create_task(self._work())
        return queued

    async def _work(self) -> None:
        try:
            await self._wait_for_company()
            while batch := self._take():
                await self._run(batch)
        finally:
            self._worker = None

    async def _wait_for_company(self) -> None:
        if not self._full.is_set() and self._wait_seconds > 0:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    await self._full.wait()
            except TimeoutError:
                pass

    async def _run(self, batch: list[_Queued[Item, Result]]) -> None:
        now = time.monotonic()
        for entry in batch:
            metrics.BATCH_WAIT_SECONDS.observe(now - entry.arrived)
        metrics.BATCH_ITEMS.observe(len(batch))
        metrics.BATCH_TOKENS.observe(sum(entry.tokens for entry in batch))
        try:
            outcomes: Sequence[Result | LodestarError | Exception]
            outcomes = await self._compute.run(self._compute_batch, [entry.item for entry in batch])
            self._shares.costs.observe(sum(entry.tokens for entry in batch), time.monotonic() - now)
        except Exception as error:  # every caller of the batch gets it; the interceptor logs it
            outcomes = [error] * len(batch)
        for entry, outcome in zip(batch, outcomes, strict=True):
            if entry.future.done():
                continue
            if isinstance(outcome, Exception):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(outcome)

    def _take(self) -> list[_Queued[Item, Result]]:
        """The next batch: the smaller side first, which is never cut, then what the other may have beside it."""
        batch: list[_Queued[Item, Result]] = []
        waiting = self._queue.tokens
        wanted = {side: min(waiting[side], self._batch_tokens) for side in waiting}
        self._shares.begin(wanted, time.monotonic())
        tokens = 0
        for side in sorted(wanted, key=lambda side: wanted[side]):
            while self._shares.may_take(side) and (entry := self._queue.next(side)) is not None:
                if batch and tokens + entry.tokens > self._batch_tokens:
                    break
                batch.append(self._queue.pop(side))
                tokens += entry.tokens
                self._shares.take(side, entry.tokens)
        self._count()
        return batch

    def _forget_cancelled(self) -> None:
        if any(entry.future.cancelled() for entry in self._queue):
            self._queue.forget(lambda entry: entry.future.cancelled())
            self._count()

    def _count(self) -> None:
        tokens = sum(self._queue.tokens.values())
        metrics.QUEUED_TOKENS.set(tokens)
        if tokens >= self._batch_tokens:
            self._full.set()
        else:
            self._full.clear()
