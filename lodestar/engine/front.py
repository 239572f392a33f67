"""The engine behind asyncio: one thread owns the model, callers talk to it by a queue.

The thread runs commands between steps (add, abort, swap, log-probs), then steps; it sleeps when there is nothing to do.
After each step it hands the event loop one batch of news. Text is decoded on the event loop, for what was waiting to be
read: a slow reader gets longer chunks, not a longer queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Sequence as Tokens
from functools import partial
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

from lodestar.engine.engine import Engine, EngineStatus
from lodestar.engine.limits import check_room
from lodestar.engine.messages import CLOSED, Command, News, Stream
from lodestar.engine.sequence import Purpose, Request, Sequence
from lodestar.errors import LodestarError, Unavailable, VersionUnavailable
from lodestar.records import (
    GenerationChunk,
    ModelInfo,
    SamplingParams,
    Scored,
    TokenLogProbs,
    WeightVersion,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class AsyncEngine:
    """``engine = AsyncEngine(make_engine, name="runs/demo/models/sft", …); await engine.start()``."""

    def __init__(self, make_engine: Callable[[], Engine], *, name: str, threads: int = 1) -> None:
        """``make_engine`` loads the model on the engine's own thread, where ``threads`` of torch's compute."""
        self._make_engine = make_engine
        self._name = name
        self._threads = threads
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._engine: Engine
        self._streams: dict[int, Stream] = {}
        self._unfinished = 0
        self._paused = False
        self._swapping = asyncio.Lock()
        self._swap_when_drained: Command | None = None
        self._swapped = asyncio.Event()
        self.closed = False

    # --- life --------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Load the model and begin to serve. Raises what loading raises."""
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Engine] = self._loop.create_future()
        self._thread = Thread(target=self._run, args=(loaded,), name="engine", daemon=True)
        self._thread.start()
        self._engine = await loaded

    async def close(self) -> None:
        """End every stream with UNAVAILABLE and stop the thread after the step in progress."""
        if self.closed:
            return
        await asyncio.to_thread(self.stop)
        for stream in list(self._streams.values()):
            stream.fail(Unavailable(CLOSED))

    def stop(self) -> None:
        """:meth:`close` for after the event loop's end."""
        self.closed = True
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()
        if self._swap_when_drained is not None:
            self._swap_when_drained.refuse()
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command.refuse()

    @property
    def engine(self) -> Engine:
        """The synchronous engine; only its immutable parts (limits, tokenizer, config) may be read from here."""
        return self._engine

    @property
    def version(self) -> WeightVersion:
        """The weights served now."""
        return self._engine.version

    @property
    def model_info(self) -> ModelInfo:
        """What answers now."""
        return self._info(self.version)

    # --- generation --------------------------------------------------------------------------------------------
    async def generate(
        self,
        prompt_ids: Tokens[int],
        sampling: SamplingParams,
        *,
        priority: float = 0.0,
        purpose: Purpose = Purpose.SERVING,
        stream: bool = True,
    ) -> AsyncIterator[GenerationChunk]:
        """Chunks of the n samples as they come, each sample's last one with its finish_reason.

        Without ``stream`` every sample is one chunk. Leaving the iteration early, or being cancelled, stops the
        sequences and frees their memory.

        Raises:
            InvalidArgument: a field is out of range.
            ResourceExhausted: the line is full.
            Unavailable: the engine is stopping.
            LodestarError: a step failed.
        """
        self._check_open()
        request = self._engine.request(prompt_ids, sampling, priority=priority, purpose=purpose)
        config = self._engine.config
        check_room(max(0, self._unfinished - config.max_sequences), sampling.n, config.max_waiting)
        reader = self._streams[request.id] = Stream(request, stream, self._engine.tokenizer)
        self._unfinished += sampling.n
        try:
            self._commands.put(Command(lambda: self._add(request, reader)))
            while reader.open:
                for sequence, end, last in await reader.read():
                    yield self._chunk(reader, sequence, end, last)
        finally:
            del self._streams[request.id]
            self._unfinished -= sampling.n
            if reader.open:
                self._commands.put(Command(lambda: self._engine.abort(request.id)))

    async def logprobs(
        self, sequences: Tokens[Scored], *, temperature: float = 1.0, entropy: bool = False
    ) -> list[TokenLogProbs]:
        """Log-probs of given completions, between steps, in batches of about ``prefill_tokens`` tokens."""
        results: list[TokenLogProbs] = []
        for batch in _batches(sequences, self._engine.config.prefill_tokens):
            results += await self.call(partial(self._engine.logprobs, batch, temperature=temperature, entropy=entropy))
        return results

    # --- weights and control -----------------------------------------------------------------------------------
    async def swap(
        self,
        tensors: Mapping[str, Tensor],
        version: WeightVersion,
        verify: Callable[[Engine], None] | None = None,
    ) -> None:
        """Serve these weights from the next step on; returns when they are served.

        With ``policy.swap: drain`` started requests are finished first and the others wait; with ``continue`` they go
        on with the new weights, each token stamped. No tensors: the present weights get this version's name. When
        ``verify``, run on the engine's thread with the new weights, raises, the old ones come back.

        Raises:
            ModelError: the tensors are not this model's; the present ones stay.
            Unavailable: the engine is stopping.
        """
        async with self._swapping:
            self._check_open()
            swap = Command(lambda: self._engine.swap(tensors, version, verify))
            self._commands.put(Command(lambda: self._begin_swap(swap, bool(tensors))))
            await asyncio.wrap_future(swap.done)
            self._swapped.set()
            self._swapped = asyncio.Event()

    async def wait_for(self, wanted: WeightVersion, seconds: float) -> None:
        """Return once the weights served are ``wanted`` or later ones of its incarnation.

        Raises:
            VersionUnavailable: they are not within ``seconds``; the message names the version held.
        """
        try:
            async with asyncio.timeout(seconds):
                while not satisfies(self.version, wanted):
                    await self._swapped.wait()
        except TimeoutError:
            held = self.version
            raise VersionUnavailable(
                f"min_version: step {wanted.step} of incarnation {wanted.incarnation or '(none)'} is not served here "
                f"within {seconds:g} s; this server holds step {held.step} of {held.incarnation or '(none)'}"
            ) from None

    async def pause(self) -> None:
        """Stop after the step in progress; requests wait."""
        await self.call(lambda: setattr(self, "_paused", True))

    async def resume(self) -> None:
        """Go on."""
        await self.call(lambda: setattr(self, "_paused", False))

    async def status(self) -> EngineStatus:
        """Counts between two steps."""
        return await self.call(lambda: self._engine.status(paused=self._paused))

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the engine's thread between two steps; it may be dropped when the caller is cancelled.

        Raises:
            Unavailable: the engine is stopping; otherwise what the function raises.
        """
        self._check_open()
        command = Command(function)
        self._commands.put(command)
        return await asyncio.wrap_future(command.done)

    # --- event loop's side -------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable(CLOSED)

    def _deliver(self, news: list[News]) -> None:
        for sequence, end, last in news:
            stream = self._streams.get(sequence.request.id)
            if stream is not None:
                stream.put(sequence, end, last)

    def _fail_all(self, error: LodestarError) -> None:
        for stream in self._streams.values():
            stream.fail(error)

    def _chunk(self, reader: Stream, sequence: Sequence, end: int, last: bool) -> GenerationChunk:
        """Response tokens up to ``end`` that were not read yet."""
        start = reader.sent[sequence.index]
        reader.sent[sequence.index] = end
        first = sequence.prompt_tokens
        tokens = tuple(sequence.tokens[first + start : first + end])
        version = sequence.versions[end - 1] if end else self.version
        steps = tuple(made.step for made in sequence.versions[start:end])
        sampling = sequence.request.sampling
        if last:
            reader.unfinished -= 1
        return GenerationChunk(
            model=self._info(version),
            sample_index=sequence.index,
            token_ids=tokens,
            text=reader.text(sequence, tokens, last),
            prompt_tokens=first,
            finish_reason=sequence.finish_reason if last else None,
            logprobs=tuple(sequence.logprobs[start:end]) if sampling.logprobs else (),
            processed_logprobs=tuple(sequence.processed_logprobs[start:end]) if sampling.logprobs else (),
            top_logprobs=tuple(sequence.top_logprobs[start:end]),
            token_steps=steps if any(step != version.step for step in steps) else (),
            error=sequence.error if last else "",
        )

    def _info(self, version: WeightVersion) -> ModelInfo:
        return ModelInfo(self._name, version, self._engine.tokenizer_hash)

    # --- the engine's thread -----------------------------------------------------------------------------------
    def _run(self, loaded: asyncio.Future[Engine]) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps it per calling thread
        try:
            engine = self._engine = self._make_engine()
        except BaseException as error:  # the caller of start() gets it
            self._loop.call_soon_threadsafe(loaded.set_exception, error)
            return
        self._loop.call_soon_threadsafe(loaded.set_result, engine)
        while self._take_commands(idle=self._paused or not engine.scheduler):
            if self._swap_when_drained is not None and engine.drained:
                swap, self._swap_when_drained = self._swap_when_drained, None
                swap.run()
                engine.scheduler.draining = False
            if not self._paused:
                self._step()

    def _take_commands(self, *, idle: bool) -> bool:
        """Run what was asked, waiting for something when idle; False at the end."""
        idle = idle and (self._swap_when_drained is None or self._paused)
        while idle or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command.run()
            idle = False
        return True

    def _begin_swap(self, swap: Command, new_tensors: bool) -> None:
        if new_tensors and self._engine.config.swap == "drain":
            self._engine.scheduler.draining = True
            self._swap_when_drained = swap
        else:
            swap.run()

    def _add(self, request: Request, reader: Stream) -> None:
        try:
            self._engine.add(request)
        except LodestarError as error:
            self._tell(reader.fail, error)

    def _step(self) -> None:
        try:
            progressed = self._engine.step()
        except Exception as error:
            # Whatever it was, it happened in the shared batch: its requests end, and the server stays up.
            log.exception("a step of the engine failed")
            self._engine.reset()
            failure = LodestarError(f"the engine failed in a step ({type(error).__name__}); the server's log says more")
            self._tell(self._fail_all, failure)
            return
        news = [
            (sequence, len(sequence.logprobs), sequence.finish_reason is not None)
            for sequence in progressed
            if sequence.finish_reason is not None or sequence.request.streamed
        ]
        if news:
            self._tell(self._deliver, news)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        """Run on the event loop; one that has ended has nobody left to tell."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


def satisfies(held: WeightVersion, wanted: WeightVersion) -> bool:
    """Whether weights held may answer a call for ``wanted`` or later.

    Steps compare within an incarnation only. Weights with the wanted digest are the wanted ones whatever their name;
    a wanted version without incarnation, step and digest is no wish at all.
    """
    if wanted == WeightVersion("", 0, ""):
        return True
    if wanted.digest and wanted.digest == held.digest:
        return True
    return held.incarnation == wanted.incarnation and held.step >= wanted.step


def _batches(sequences: Tokens[Scored], tokens: int) -> list[list[Scored]]:
    batches: list[list[Scored]] = [[]]
    size = 0
    for scored in sequences:
        if batches[-1] and size + len(scored.token_ids) > tokens:
            batches.append([])
            size = 0
        batches[-1].append(scored)
        size += len(scored.token_ids)
    return batches
