"""The live view: a calm page in the terminal, and plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lodestar.local.board import Board, Message, ServiceRow, StageRow

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 22
PLAIN_SECONDS = 5.0
"""Plain lines about a stage's progress come this often at most."""
STAGE_MARKS = {
    "waiting": ("·", "bright_black"),
    "running": ("●", "cyan"),
    "done": ("✓", "green"),
    "kept": ("✓", "bright_black"),
    "failed": ("✗", "red"),
}
SERVICE_STYLES = {"starting": "yellow", "ready": "green", "restarting": "red", "stopped": "bright_black"}


@contextlib.contextmanager
def live_view(board: Board, page: Page | None = None) -> Iterator[None]:
    """Draws the board four times a second until the context ends; the last drawing stays."""
    console = Console()
    page = page or Page(board)
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


class PlainPrinter:
    """Turns changes of the board into lines on stdout."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._step = -1
        self._win_rate_step = -1
        self._invitation = ""
        self._last = time.monotonic()

    def message(self, message: Message) -> None:
        """Something worth a line."""
        self._line(f"{'warning: ' if message.level == 'warning' else ''}{message.text}")

    def tick(self) -> None:
        """Prints the newest PPO step and win rate once, and where a stage is when nothing was said for a while."""
        if self._board.invitation != self._invitation and sys.stdout.isatty():  # a secret: not for a log
            self._invitation = self._board.invitation
            self._line(f"come in and judge: {self._invitation}")
        status, win_rate = self._board.status, self._board.win_rate
        if status and status.metrics and status.step != self._step:
            self._step = status.step
            shown = [
                f"{label} {status.metrics[name]:{form}}" for name, label, form in STEP_FIGURES if name in status.metrics
            ]
            self._line(f"step {status.step}/{status.total_steps}  {'  '.join(shown)}  eta {clock(status.eta_seconds)}")
        if win_rate and win_rate["step"] != self._win_rate_step:
            self._win_rate_step = win_rate["step"]
            self._line(
                f"win rate after step {win_rate['step']}: {win_rate['value']:.1%} "
                f"[{win_rate['low']:.1%}, {win_rate['high']:.1%}] of {win_rate['n']}"
            )
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            for row in self._board.stages:
                if row.state == "running" and row.name != self._board.stepping:
                    done = f" {row.fraction:.0%}" if row.fraction is not None else ""
                    self._line(f"{row.name}:{done} {row.detail}".rstrip())

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stdout, flush=True)


STEP_FIGURES = (
    ("score", "score", "+.3f"),
    ("kl_sequence", "KL", ".3f"),
    ("response_length", "length", ".1f"),
    ("tokens_per_second", "tokens/s", ".0f"),
)


class Page:
    """Renders the board anew each time it is asked."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __rich__(self) -> RenderableType:
        board = self._board
        parts: list[RenderableType] = [self._title(), Text(), self._stages()]
        if board.status is not None:
            parts += [Text(), self._ppo()]
        if board.invitation and any(row.state == "ready" and row.name.startswith("feedback") for row in board.services):
            parts += [Text(), Text.assemble("come in and judge: ", (board.invitation, "bold cyan"))]
        if (services := self._services()) is not None:
            parts += [Text(), services]
        notable = [message for message in board.messages if message.level == "warning"][-3:]
        if notable:
            parts += [Text(), *(_warning(message) for message in notable)]
        return Padding(Group(*parts), (1, 2))

    def _title(self) -> Text:
        text = Text()
        text.append("✦ lodestar ", style="bold")
        text.append(self._board.run, style="cyan")
        text.append(f"   {clock(time.monotonic() - self._board.started)}", style="bright_black")
        budget = sum(row.budget_seconds or 0.0 for row in self._board.stages)
        if budget:
            text.append(f" of about {clock(budget)}", style="bright_black")
        return text

    def _stages(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False, expand=True)
        table.add_column(width=1)
        table.add_column(width=11)
        table.add_column(width=18)
        table.add_column(justify="right", width=6)
        table.add_column(width=9, style="bright_black")
        table.add_column(style="bright_black", overflow="ellipsis", no_wrap=True, ratio=1)
        for row in self._board.stages:
            mark, style = STAGE_MARKS[row.state]
            faint = "bright_black" if row.state in ("waiting", "kept") else ""
            table.add_row(
                Text(mark, style=style),
                Text(row.name, style=faint),
                bar(row.fraction, 18) if row.state == "running" else Text(),
                Text(clock(row.elapsed) if row.state != "waiting" else "", style=faint),
                f"of {clock(row.budget_seconds)}" if row.budget_seconds else "",
                _detail(row),
            )
        return table

    def _ppo(self) -> Table:
        board, status = self._board, self._board.status
        assert status is not None
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(width=9, style="bright_black")
        table.add_column(width=9, justify="right")
        table.add_column(width=SPARK_WIDTH, style="cyan")
        table.add_column(style="bright_black")
        left = f"{clock(status.eta_seconds)} left" if status.step and status.state not in ("finished", "failed") else ""
        doing = f"{status.state}" + (f" {status.settled}/{status.batch}" if status.state == "collecting" else "")
        table.add_row(
            "step",
            f"{status.step} / {status.total_steps}",
            bar(_share(status.step, status.total_steps)),
            "  ".join(filter(None, (doing, left))),
        )
        for name, label, form in (
            ("score", "score", "+.3f"),
            ("kl_sequence", "KL, nats", ".3f"),
            ("tokens_per_second", "tokens/s", ".0f"),
        ):
            if board.history[name]:
                table.add_row(
                    label, f"{board.history[name][-1]:{form}}", sparkline(board.history[name], SPARK_WIDTH), ""
                )
        if board.win_rate:
            rate = board.win_rate
            table.add_row(
                "win rate",
                Text(f"{rate['value']:.1%}", style="bold green" if rate["low"] > 0.5 else "bold"),
                bar(rate["value"], SPARK_WIDTH),
                f"{rate['low']:.0%}–{rate['high']:.0%} of {rate['n']}, after step {rate['step']}",
            )
        if board.queue_waiting is not None:
            table.add_row("queue", f"{board.queue_waiting}", "", f"waiting, {board.queue_taken or 0} taken")
        if status.reason:
            table.add_row("", "", "", Text(status.reason, style="yellow"))
        return table

    def _services(self) -> Table | None:
        if not self._board.services:
            return None
        table = quiet_table()
        for header, justify in (
            ("service", "left"),
            ("", "left"),
            ("port", "right"),
            ("pid", "right"),
            ("rpcs", "right"),
            ("tokens", "right"),
            ("weights", "right"),
            ("restarts", "right"),
        ):
            table.add_column(header, justify=justify)  # type: ignore[arg-type]
        for row in self._board.services:
            table.add_row(*_service_cells(row))
        return table


def quiet_table() -> Table:
    """A table of services: faint headers, no frame."""
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        header_style="bright_black",
        border_style="bright_black",
        pad_edge=False,
        padding=(0, 1),
    )


def _service_cells(row: ServiceRow) -> list[RenderableType]:
    return [
        row.name,
        Text(row.state, style=SERVICE_STYLES[row.state]),
        str(row.port),
        str(row.pid),
        f"{row.rpcs:,}",
        f"{row.tokens:,}",
        "" if row.weight_step is None else f"step {row.weight_step}",
        Text(str(row.restarts), style="yellow") if row.restarts else Text("·", style="bright_black"),
    ]


def _detail(row: StageRow) -> Text:
    """What its clock did to a stage, then its newest figures."""
    cut = f"cut short at {row.cut_short}" if row.cut_short else ""
    said = row.detail or ("kept from before" if row.state == "kept" else "")
    return Text.assemble((cut, "yellow"), " · " if cut and said else "", said)


def _warning(message: Message) -> Text:
    text = Text(time.strftime("%H:%M:%S ", time.localtime(message.time)), style="bright_black")
    text.append(message.text, style="yellow")
    return text


def bar(fraction: float | None, width: int = SPARK_WIDTH) -> Text:
    """A thin bar; empty when the share is unknown."""
    if fraction is None:
        return Text("─" * width, style="bright_black")
    full = round(min(1.0, max(0.0, fraction)) * width)
    return Text.assemble(("━" * full, "cyan"), ("─" * (width - full), "bright_black"))


def sparkline(values: list[float], width: int) -> str:
    """The last ``width`` values as block characters between their own minimum and maximum."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def clock(seconds: float) -> str:
    """``1:05``; hours only when there are some."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def view_for(plain: bool) -> Callable[[Board], AbstractContextManager[None]]:
    """The live view, or plain lines when asked for or when stdout is no terminal."""
    return plain_view if plain or not sys.stdout.isatty() else live_view
