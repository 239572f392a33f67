"""The engine behind asyncio: one thread owns the model (lodestar.engine.thread), callers talk to it by a queue.

After each step the thread hands the event loop one batch of news. Text is decoded on the event loop, for what was
waiting to be read: a slow reader gets longer chunks, not a longer queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from collections.abc import Sequence as Tokens
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from lodestar.engine.engine import Engine, EngineStatus
from lodestar.engine.limits import check_room
from lodestar.engine.messages import CLOSED, Command, News, Stream
from lodestar.engine.replay import Standby
from lodestar.engine.sequence import Request, Sequence
from lodestar.engine.thread import EngineThread
from lodestar.errors import LodestarError, Unavailable, VersionUnavailable
from lodestar.fair import Flow
from lodestar.packing import batches_of
from lodestar.records import (
    GenerationChunk,
    ModelInfo,
    Purpose,
    SamplingParams,
    Scored,
    TokenLogProbs,
    WeightVersion,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class AsyncEngine:
    """``engine = AsyncEngine(make_engine, name="runs/demo/sft/policy", …); await engine.start()``."""

    def __init__(self, make_engine: Callable[[], Engine], *, name: str, threads: int = 1) -> None:
        """``make_engine`` loads the model on the engine's own thread, where ``threads`` of torch's compute."""
        self._name = name
        self._loop: asyncio.AbstractEventLoop
        self._loaded: asyncio.Future[Engine]
        self._thread = EngineThread(
            make_engine, threads, on_loaded=self._on_loaded, on_progress=self._on_progress, on_failure=self._on_failure
        )
        self._streams: dict[int, Stream] = {}
        self._unfinished = {True: 0, False: 0}
        self._scoring = 0
        """Sequences of LogProbs calls that are not answered."""
        self._swapping = asyncio.Lock()
        self._swapped = asyncio.Event()
        self.closed = False

    # --- life --------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Load the model and begin to serve. Raises what loading raises."""
        self._loop = asyncio.get_running_loop()
        self._loaded = self._loop.create_future()
        self._thread.start()
        await self._loaded

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
        self._thread.stop()

    @property
    def engine(self) -> Engine:
        """The synchronous engine; only its immutable parts (limits, tokenizer, config) may be read from here."""
        return self._thread.engine

    @property
    def version(self) -> WeightVersion:
        """The weights served now."""
        return self.engine.version

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
        flow: Flow | None = None,
        stream: bool = True,
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Chunks of the n samples as they come, each sample's last one with its finish_reason.

        Without ``stream`` every sample is one chunk. Leaving the iteration early, or being cancelled, stops the
        sequences and frees their memory.

        Raises:
            InvalidArgument: a field is out of range.
            ResourceExhausted: the line of training, or of all callers, is full.
            Unavailable: the engine is stopping.
            LodestarError: a step failed.
        """
        self._check_open()
        request = self.engine.request(prompt_ids, sampling, priority=priority, purpose=purpose, flow=flow)
        config = self.engine.config
        side = request.flow.training
        check_room(max(0, self._unfinished[side] - config.max_sequences), sampling.n, config.max_waiting)
        reader = self._streams[request.id] = Stream(request, stream, self.engine.tokenizer)
        self._unfinished[side] += sampling.n
        try:
            self._thread.put(Command(lambda: self._add(request, reader)))
            while reader.open:
                for sequence, end, last in await reader.read():
                    yield self._chunk(reader, sequence, end, last)
        finally:
            del self._streams[request.id]
            self._unfinished[side] -= sampling.n
            if reader.open:
                self._thread.put(Command(lambda: self.engine.abort(request.id)))

    async def logprobs(
        self,
        sequences: Tokens[Scored],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        top: int = 0,
        flow: Flow | None = None,
    ) -> list[TokenLogProbs]:
        """Log-probs of given completions, between steps, in batches of about ``prefill_tokens`` tokens; while there are
        steps, these have as much time, and callers (``flow``) take turns.

        Raises:
            ResourceExhausted: too many wait.
        """
        self._check_open()
        check_room(self._scoring, len(sequences), self.engine.config.max_waiting)
        asked = partial(self.engine.logprobs, temperature=temperature, entropy=entropy, top=top)
        results: list[TokenLogProbs] = []
        self._scoring += len(sequences)
        try:
            for batch in batches_of(sequences, self.engine.config.prefill_tokens, lambda one: len(one.token_ids)):
                work = Command(partial(asked, batch))
                self._thread.put_aside(flow or Flow(), work, sum(len(one.token_ids) for one in batch))
                results += await asyncio.wrap_future(work.done)
        finally:
            self._scoring -= len(sequences)
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
        await self._swap(lambda: self.engine.swap(tensors, version, verify), new=bool(tensors))

    async def adopt(self, standby: Standby, version: WeightVersion) -> None:
        """:meth:`swap` for weights that stand by already (Engine.stand_by).

        Raises:
            Unavailable: the engine is stopping.
        """
        await self._swap(lambda: self.engine.adopt(standby, version), new=True)

    async def _swap(self, function: Callable[[], None], *, new: bool) -> None:
        async with self._swapping:
            self._check_open()
            swap = Command(function)
            self._thread.put_swap(swap, drain=new and self.engine.config.swap == "drain")
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
        await self.call(lambda: setattr(self._thread, "paused", True))

    async def resume(self) -> None:
        """Go on."""
        await self.call(lambda: setattr(self._thread, "paused", False))

    async def status(self) -> EngineStatus:
        """Counts between two steps."""
        return await self.call(lambda: self.engine.status(paused=self._thread.paused))

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the engine's thread between two steps; it may be dropped when the caller is cancelled.

        Raises:
            Unavailable: the engine is stopping; otherwise what the function raises.
        """
        self._check_open()
        command = Command(function)
        self._thread.put(command)
        return await asyncio.wrap_future(command.done)

    # --- event loop's side -------------------------------------------------------------------------------------
    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable(CLOSED)

    def _deliver(self, news: list[News]) -> None:
        for sequence, end, last in news:
            stream = self._streams.get(sequence.request.id)
            if stream is not None:
                stream.put(sequence, end, last, len(self._streams))

    def _fail(self, request_ids: list[int], error: LodestarError) -> None:
        for request_id in request_ids:
            stream = self._streams.get(request_id)
            if stream is not None:
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
            prompt_tokens=first - sequence.request.hidden,
            finish_reason=sequence.finish_reason if last else None,
            logprobs=tuple(sequence.logprobs[start:end]) if sampling.logprobs else (),
            processed_logprobs=tuple(sequence.processed_logprobs[start:end]) if sampling.logprobs else (),
            top_logprobs=tuple(sequence.top_logprobs[start:end]),
            token_steps=steps if any(step != version.step for step in steps) else (),
            error=sequence.error if last else "",
        )

    def _info(self, version: WeightVersion) -> ModelInfo:
        return ModelInfo(self._name, version, self.engine.tokenizer_hash)

    # --- called on the engine's thread --------------------------------------------------------------------------
    def _on_loaded(self, outcome: Engine | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self._tell(self._loaded.set_exception, outcome)
        else:
            self._tell(self._loaded.set_result, outcome)

    def _add(self, request: Request, reader: Stream) -> None:
        try:
            self.engine.add(request)
        except LodestarError as error:
            self._tell(reader.fail, error)
        except Exception as error:  # whatever it is, the caller waits for it
            log.exception("a request could not be added")
            self.engine.abort(request.id)
            self._tell(reader.fail, LodestarError(f"the engine failed to take the request ({type(error).__name__})"))

    def _on_progress(self, progressed: list[Sequence]) -> None:
        news = [
            (sequence, len(sequence.logprobs), sequence.finish_reason is not None)
            for sequence in progressed
            if sequence.finish_reason is not None or sequence.request.streamed
        ]
        if news:
            self._tell(self._deliver, news)

    def _on_failure(self, request_ids: list[int], error: Exception) -> None:
        why = f"the engine failed in a step ({type(error).__name__}); the server's log says more"
        self._tell(self._fail, request_ids, LodestarError(why))

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
