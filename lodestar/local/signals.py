"""Ctrl-C and SIGTERM as an exception in the main thread, once; a second one hurries the clean-up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """The person or the system asked the launcher to stop. Not an Exception: nothing but the launcher handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted inside; yields an event that the second one sets."""
    hurry = threading.Event()
    heard: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if heard:
            hurry.set()
            return
        heard.append(number)
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
