"""The live view: a calm page in the terminal, and plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.live import Live

from lodestar.local.board import Board, Message
from lodestar.local.page import FIGURES, Page
from lodestar.numerals import clock, fixed

PLAIN_SECONDS = 5.0
"""Plain lines about a stage's progress come this often at most."""


@contextlib.contextmanager
def live_view(board: Board, page: Page | None = None) -> Iterator[None]:
    """Draws the board four times a second until the context ends; the last drawing stays."""
    console = Console()
    page = page or Page(board, fitted=True)
    with Live(page, console=console, refresh_per_second=4, transient=False, redirect_stdout=False) as live:
        try:
            yield
        finally:
            live.refresh()


@contextlib.contextmanager
def plain_view(board: Board) -> Iterator[None]:
    """One line per event and per PPO step, and one every few seconds of a long stage."""
    printer = PlainPrinter(board)
    board.listener = printer.message
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.5):
            printer.tick()

    thread = threading.Thread(target=tick, name="plain-view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        printer.tick()


STEP_FIGURES = (*FIGURES[:2], ("response_length", "length", lambda value: fixed(value, 1)), *FIGURES[2:])


class PlainPrinter:
    """Turns changes of the board into lines on stdout."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._step = -1
        self._win_rate_step = -1
        self._last = time.monotonic()

    def message(self, message: Message) -> None:
        """Something worth a line."""
        self._line(f"{'warning: ' if message.level == 'warning' else ''}{message.text}")

    def tick(self) -> None:
        """Prints the newest PPO step and win rate once, and where a stage is when nothing was said for a while."""
        status, win_rate = self._board.status, self._board.win_rate
        if status and status.metrics and status.step != self._step:
            self._step = status.step
            found = {**status.metrics}
            shown = [f"{label} {form(found[name])}" for name, label, form in STEP_FIGURES if name in found]
            said = "  ".join(shown).replace("−", "-")
            self._line(f"step {status.step}/{status.total_steps}  {said}  eta {clock(status.eta_seconds)}")
        if win_rate and win_rate["step"] != self._win_rate_step:
            self._win_rate_step = win_rate["step"]
            self._line(
                f"win rate after step {win_rate['step']}: {win_rate['value']:.1%} "
                f"[{win_rate['low']:.1%}, {win_rate['high']:.1%}] of {win_rate['n']}"
            )
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            for row in self._board.stages:
                if row.state == "running" and row.name != self._board.stepping:
                    done = f"{row.fraction:.0%}" if row.fraction is not None else ""
                    self._line(f"{row.name}: {' '.join(filter(None, (done, row.detail))) or 'at work'}")

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stdout, flush=True)


def view_for(plain: bool) -> Callable[[Board], AbstractContextManager[None]]:
    """The live view, or plain lines when asked for or when stdout is no terminal."""
    return plain_view if plain or not sys.stdout.isatty() else live_view
