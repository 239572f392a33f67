"""Where the run is, and what a person asked of it: the meeting place of the training thread and the gRPC server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lodestar import metrics
from lodestar.liveness import waiting
from lodestar.records import RunState, RunStatus

_ENDS = (RunState.FINISHED, RunState.FAILED, RunState.STOPPED)


class StatusBoard:
    """The run's status, written by the training thread and watched by the server's event loop."""

    def __init__(self, status: RunStatus, loop: asyncio.AbstractEventLoop) -> None:
        self._status = status
        self._loop = loop
        self._changed = asyncio.Event()

    @property
    def status(self) -> RunStatus:
        """The present status."""
        return self._status

    def update(self, **changes: Any) -> None:
        """Replaces fields of the status; callable from any thread."""
        self._status = replace(self._status, **changes)
        for state in RunState:
            metrics.RUN_STATE.labels(state.value).set(state is self._status.state)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self) -> AsyncIterator[RunStatus]:
        """The status at once and after every change, until the learner ends; slow watchers skip some."""
        seen: RunStatus | None = None
        while True:
            changed, status = self._changed, self._status
            if status is not seen:
                seen = status
                yield status
                if status.state in _ENDS:
                    return
            else:
                await changed.wait()


class Controls:
    """Requests to a running loop. The loop looks at them between steps and while it waits for rollouts."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._paused = False
        self._stop = self._leave = False
        self._checkpoint_wanted = False
        self._checkpoints: list[Path | BaseException] = []

    def pause(self) -> None:
        """Holds the run after the step in progress."""
        with self._condition:
            self._paused = True

    def resume(self) -> None:
        """Goes on."""
        with self._condition:
            self._paused = False
            self._condition.notify_all()

    def stop(self) -> None:
        """Ends the run after the step in progress, with a checkpoint; a step that waits for rollouts is abandoned."""
        with self._condition:
            self._stop = True
            self._condition.notify_all()

    def leave(self) -> None:
        """Ends this process likewise, but not the run, unless its end was wanted before."""
        with self._condition:
            self._leave = not self._stop
        self.stop()

    @property
    def leaving(self) -> bool:
        """Whether this process is to end before its run."""
        return self._leave

    @property
    def paused(self) -> bool:
        """Whether a pause is wanted."""
        return self._paused

    @property
    def stopping(self) -> bool:
        """Whether the end is wanted, of the run or of this process."""
        return self._stop

    @property
    def checkpoint_wanted(self) -> bool:
        """Whether somebody waits for a checkpoint."""
        return self._checkpoint_wanted

    def wait_while_paused(self) -> None:
        """Blocks the training thread until resumed, stopped or asked for a checkpoint."""
        with waiting(), self._condition:
            self._condition.wait_for(lambda: not self._paused or self._stop or self._checkpoint_wanted)

    def request_checkpoint(self, timeout_seconds: float) -> Path:
        """Blocks the calling thread until the loop has written a checkpoint.

        Raises:
            TimeoutError: none was written in time.
            Exception: whatever kept the loop from writing it.
        """
        with self._condition:
            before = len(self._checkpoints)
            self._checkpoint_wanted = True
            self._condition.notify_all()
            deadline = time.monotonic() + timeout_seconds
            if not self._condition.wait_for(lambda: len(self._checkpoints) > before, deadline - time.monotonic()):
                raise TimeoutError("the step in progress did not end in time")
            result = self._checkpoints[-1]
        if isinstance(result, BaseException):
            raise result
        return result

    def checkpointed(self, result: Path | BaseException) -> None:
        """The loop's answer to request_checkpoint; nothing when nobody waits."""
        with self._condition:
            if not self._checkpoint_wanted:
                return
            self._checkpoint_wanted = False
            self._checkpoints.append(result)
            self._condition.notify_all()
