"""The thread that owns the model: it runs commands between steps, then steps; it sleeps when there is nothing to do."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from threading import Thread

from lodestar.cores import compute_threads, follow
from lodestar.engine.engine import Engine
from lodestar.engine.messages import Command
from lodestar.engine.sequence import Sequence
from lodestar.fair import FairLine, Flow
from lodestar.liveness import working

log = logging.getLogger(__name__)


class EngineThread:
    """``commands`` come from any thread; ``on_progress`` and ``on_failure`` are called on this one."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        threads: int,
        *,
        on_loaded: Callable[[Engine | BaseException], None],
        on_progress: Callable[[list[Sequence]], None],
        on_failure: Callable[[list[int], Exception], None],
    ) -> None:
        """
        Args:
            make_engine: loads the model, on the new thread.
            threads: of torch's compute, at most.
            on_loaded: gets the engine, or why there is none.
            on_progress: gets the sequences that a step gave a token or ended.
            on_failure: gets the ids of the requests that a failed step ended.
        """
        self._make_engine = make_engine
        self._threads = threads
        self._on_loaded = on_loaded
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._asides: FairLine[tuple[Command, int]] = FairLine(lambda aside: aside[1])
        """Work of callers beside generation, and its tokens. Only this thread touches it."""
        self._owed = 0.0
        """Seconds of steps before the next of these."""
        self._swap_when_drained: Command | None = None
        self.engine: Engine
        self.paused = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def put(self, command: Command) -> None:
        """Run a command between two steps."""
        self._commands.put(command)

    def put_swap(self, swap: Command, *, drain: bool) -> None:
        """Run a swap of weights between two steps: the next ones, or once started requests are finished."""
        self.put(Command(lambda: self._begin_swap(swap, drain)))

    def put_aside(self, flow: Flow, work: Command, tokens: int) -> None:
        """Run a caller's work between two steps, in turns with other callers', and no longer than steps take."""
        arrival = Command(lambda: self._asides.push(flow, (work, tokens)))
        arrival.done.add_done_callback(lambda arrived: work.refuse() if arrived.exception() else None)
        self.put(arrival)

    def stop(self) -> None:
        """End after the step in progress; commands that were not run are refused."""
        self._commands.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        if self._swap_when_drained is not None:
            self._swap_when_drained.refuse()
        for aside, _ in self._asides:
            aside.refuse()
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command.refuse()

    def _run(self) -> None:
        compute_threads(self._threads)
        try:
            with working("engine"):
                engine = self.engine = self._make_engine()
        except BaseException as error:  # whoever started the thread gets it
            self._on_loaded(error)
            return
        self._on_loaded(engine)
        while self._take_commands(idle=(self.paused or not engine.scheduler) and not self._asides):
            if self._swap_when_drained is not None and engine.drained:
                swap, self._swap_when_drained = self._swap_when_drained, None
                with working("engine"):
                    swap.run()
                engine.scheduler.draining = False
            generates = bool(engine.scheduler) and not self.paused
            if self._asides and (self._owed <= 0 or not generates):
                self._owed = self._timed(self._run_aside)
            if generates:
                self._owed -= self._timed(self._step)

    @staticmethod
    def _timed(work: Callable[[], None]) -> float:
        began = time.monotonic()
        with working("engine"):
            work()
        return time.monotonic() - began

    def _run_aside(self) -> None:
        aside, _ = self._asides.pop(training=self._asides.next(training=True) is not None)
        aside.run()

    def _take_commands(self, *, idle: bool) -> bool:
        """Run what was asked, waiting for something when idle; False at the end."""
        idle = idle and (self._swap_when_drained is None or self.paused)
        while idle or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            with working("engine"):
                command.run()
            idle = False
        return True

    def _begin_swap(self, swap: Command, drain: bool) -> None:
        if drain:
            self.engine.scheduler.draining = True
            self._swap_when_drained = swap
        else:
            swap.run()

    def _step(self) -> None:
        follow()
        try:
            progressed = self.engine.step()
        except Exception as error:
            # Whatever it was, it happened in the shared batch: its requests end, and the server stays up.
            log.exception("a step of the engine failed")
            self._on_failure(self.engine.reset(), error)
            return
        self._on_progress(progressed)
