"""What passes between asyncio's callers and the engine's thread: commands one way, news of samples the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lodestar.engine.sequence import Request, Sequence
from lodestar.engine.text import TextStream
from lodestar.errors import LodestarError, Unavailable
from lodestar.records import FinishReason

CLOSED = "the engine is stopping; ask another replica"

CHUNKS_PER_SECOND = 500
"""Of all streams together: a chunk costs the event loop, which answers everybody, about as much as a token costs a
small model."""
News = tuple[Sequence, int, bool]
"""A sample, its response tokens so far, and whether that is all."""


class Command:
    """Something to run on the engine's thread, and where its outcome goes."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.done: Future[Any] = Future()

    def run(self) -> None:
        """Runs it unless whoever asked has gone."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.done.set_result(self._function())
        except Exception as error:  # whoever awaits it gets it
            self.done.set_exception(error)

    def refuse(self) -> None:
        """The thread has ended."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(Unavailable(CLOSED))


class Stream:
    """What one caller has not read yet."""

    def __init__(self, request: Request, streamed: bool, tokenizer: Any) -> None:
        request.streamed = streamed
        self.sent = [0] * request.sampling.n
        self.unfinished = request.sampling.n
        sampling = request.sampling
        self._texts = [TextStream(tokenizer, sampling.stop, sampling.min_tokens) for _ in range(sampling.n)]
        self._news: dict[int, News] = {}
        self._error: LodestarError | None = None
        self._ready = asyncio.Event()
        self._woken = 0.0

    @property
    def open(self) -> bool:
        """Whether chunks are to come."""
        return self.unfinished > 0

    def put(self, sequence: Sequence, end: int, last: bool, streams: int = 1) -> None:
        """A sample has ``end`` response tokens now, and no more to come if ``last``.

        The more ``streams`` are open, the longer are the chunks of each.
        """
        self._news[sequence.index] = sequence, end, last
        now = time.monotonic()
        if last or now - self._woken >= streams / CHUNKS_PER_SECOND:
            self._woken = now
            self._ready.set()

    def fail(self, error: LodestarError) -> None:
        """Nothing more will come."""
        self._error = error
        self._ready.set()

    async def read(self) -> list[News]:
        """Waits for news of at least one sample."""
        await self._ready.wait()
        self._ready.clear()
        news, self._news = self._news, {}
        if not news and self._error is not None:
            raise self._error
        if self._error is not None:
            self._ready.set()
        return list(news.values())

    def text(self, sequence: Sequence, tokens: tuple[int, ...], last: bool) -> str:
        """What the tokens add to the sample's text; EOS and stop ids add nothing."""
        ended_by_id = sequence.finish_reason is FinishReason.EOS or (
            sequence.finish_reason is FinishReason.STOP and tokens[-1:][0] in sequence.request.sampling.stop_token_ids
        )
        if last and ended_by_id:
            tokens = tokens[:-1]
        return self._texts[sequence.index].add(tokens, last=last)
