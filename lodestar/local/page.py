"""The live view's page: a run's board as lines that fit the terminal, whatever its size.

A line is cut, never wrapped, so that no long detail moves another. Where the terminal is low, what matters least goes
first: blank lines, stopped services, stages that are done or wait, then the services one by one in a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from lodestar.local.board import Board, Message, ServiceRow, StageRow
from lodestar.numerals import clock, fixed

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 22
NAME_WIDTH = 14
"""Of stages and services; a longer name is cut."""
STAGE_MARKS = {
    "waiting": ("·", "bright_black"),
    "running": ("●", "cyan"),
    "done": ("✓", "green"),
    "kept": ("✓", "bright_black"),
    "failed": ("✗", "red"),
}
SERVICE_STYLES = {
    "starting": "yellow",
    "ready": "green",
    "hanging": "red",
    "restarting": "red",
    "stopped": "bright_black",
}
FAINT = "bright_black"
Figure = Callable[[float], str]
FIGURES: tuple[tuple[str, str, Figure], ...] = (
    ("score", "score", lambda value: fixed(value, 3, plus=True)),
    ("kl_sequence", "KL, nats", lambda value: fixed(value, 3)),
    ("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
)


@dataclass(frozen=True, slots=True)
class Fit:
    """How much of the board is shown; each further one needs fewer lines."""

    margin: bool = True
    """A blank line above and below."""
    stopped: bool = True
    """Services that have stopped."""
    quiet: bool = True
    """A line of its own for each stage that is done or waits."""
    table: bool = True
    """A line for each service."""
    warnings: int = 3
    blanks: bool = True
    """Between the parts."""


FITS = (
    Fit(),
    Fit(margin=False),
    Fit(margin=False, stopped=False),
    Fit(margin=False, stopped=False, quiet=False),
    Fit(margin=False, stopped=False, quiet=False, table=False),
    Fit(margin=False, stopped=False, quiet=False, table=False, warnings=1),
    Fit(margin=False, stopped=False, quiet=False, table=False, warnings=1, blanks=False),
)


class Page:
    """Renders the board anew each time it is asked: ``console.print(Page(board))``."""

    def __init__(self, board: Board, *, fitted: bool = False) -> None:
        """``fitted``: at most as many lines as the terminal has."""
        self._board = board
        self._fitted = fitted

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        room = console.size.height - 1 if self._fitted else None  # the cursor stands below
        for fit in FITS:
            lines = self.lines(width, fit)
            if room is None or len(lines) <= room:
                break
        yield Group(*lines[:room])

    def lines(self, width: int, fit: Fit) -> list[Text]:
        """The page, every line cut to the width."""
        board = self._board
        parts = [[self._title()], self._stages(fit, width - 4)]
        if board.status is not None:
            parts.append(list(self._ppo()))
        if board.invitation and any(row.state == "ready" and row.name.startswith("feedback") for row in board.services):
            parts.append([Text("come in and judge:"), Text(board.invitation, "bold cyan")])
        parts.append(list(_services(board.services, fit, width - 4)))
        notable = [message for message in board.messages if message.level == "warning"][-fit.warnings :]
        parts.append([_warning(message) for message in notable])
        found: list[Text] = []
        for part in filter(None, parts):
            found += [Text()] if found and fit.blanks else []
            found += part
        indent = "  " if fit.blanks else " "
        cut = [_cut(Text.assemble(indent, line), width) for line in found]
        return [Text(), *cut, Text()] if fit.margin else cut

    def _title(self) -> Text:
        board = self._board
        text = Text.assemble(("✦ lodestar ", "bold"), (board.run, "cyan"))
        text.append(f"   {clock(time.monotonic() - board.started)}", style=FAINT)
        if budget := sum(row.budget_seconds or 0.0 for row in board.stages):
            text.append(f" of about {clock(budget)}", style=FAINT)
        return text

    def _stages(self, fit: Fit, width: int) -> list[Text]:
        rows = self._board.stages
        name = min(NAME_WIDTH, max((len(row.name) for row in rows), default=0))
        if fit.quiet:
            return [_stage(row, name) for row in rows]
        at = next((i for i, row in enumerate(rows) if row.state in ("running", "failed")), len(rows))
        lines = [_folded(rows[:at], width, newest=True)] if at else []
        lines += [_stage(row, name) for row in rows[at : at + 1]]
        return [*lines, _folded(rows[at + 1 :], width, newest=False)] if rows[at + 1 :] else lines

    def _ppo(self) -> Iterator[Text]:
        board, status = self._board, self._board.status
        assert status is not None
        left = f"{clock(status.eta_seconds)} left" if status.step and status.state not in ("finished", "failed") else ""
        doing = f"{status.state}" + (f" {status.settled}/{status.batch}" if status.state == "collecting" else "")
        share = status.step / status.total_steps if status.total_steps else None
        yield _figure(
            "step", f"{status.step} / {status.total_steps}", bar(share), "  ".join(filter(None, (doing, left)))
        )
        for name, label, form in FIGURES:
            if values := board.history[name]:
                yield _figure(label, form(values[-1]), Text(sparkline(values, SPARK_WIDTH), style="cyan"))
        if rate := board.win_rate:
            value = Text(f"{rate['value']:.1%}", style="bold green" if rate["low"] > 0.5 else "bold")
            beside = f"{rate['low']:.0%}–{rate['high']:.0%} of {rate['n']}, after step {rate['step']}"
            yield _figure("win rate", value, bar(rate["value"]), beside)
        if board.queue_waiting is not None:
            yield _figure("queue", f"{board.queue_waiting:,}", Text(), f"waiting, {board.queue_taken or 0:,} taken")
        if status.reason:
            yield Text(status.reason, style="yellow")


def _stage(row: StageRow, name: int) -> Text:
    """Mark, name, time of budget; then a bar while it runs, and what it says."""
    mark, style = STAGE_MARKS[row.state]
    faint = FAINT if row.state in ("waiting", "kept") else ""
    text = Text.assemble((mark, style), "  ", _padded(row.name, name, faint))
    text.append(f"{clock(row.elapsed) if row.state != 'waiting' else '':>8}", style=faint)
    text.append(f" {f'of {clock(row.budget_seconds)}' if row.budget_seconds else '':<8}  ", style=FAINT)
    if row.state == "running":
        text.append_text(Text.assemble(bar(row.fraction, 18), "  "))
    if row.cut_short:
        text.append(f"cut short at {row.cut_short}", style="yellow")
    said = row.detail or ("kept from before" if row.state == "kept" else "")
    return text.append(f"{' · ' if row.cut_short and said else ''}{said}", style=FAINT)


def _folded(rows: Sequence[StageRow], width: int, *, newest: bool) -> Text:
    """Stages that are done, or that wait, in one line; one that its clock ended stays marked. Where they do not fit,
    the ``newest``, or the next, are named and the rest counted."""
    parts = [_short(row) for row in (reversed(rows) if newest else rows)]
    shown = len(parts)
    while shown > 1 and sum(part.cell_len + 3 for part in parts[:shown]) + (shown < len(parts)) * 14 > width:
        shown -= 1
    left = len(parts) - shown
    line = Text("   ").join(reversed(parts[:shown]) if newest else parts[:shown])
    more = Text(f"{left} more", style=FAINT) if left else Text()
    return Text("   ").join(filter(None, (more, line) if newest else (line, more)))


def _short(row: StageRow) -> Text:
    mark, style = STAGE_MARKS[row.state]
    seconds = f" {clock(row.seconds)}" if row.state in ("done", "kept") else ""
    cut = " cut short" if row.cut_short else ""
    return Text.assemble((mark, style), " ", (f"{row.name}{seconds}", FAINT), (cut, "yellow"))


def _figure(label: str, value: str | Text, drawn: Text, beside: str = "") -> Text:
    value = value if isinstance(value, Text) else Text(value)
    value.align("right", 10)
    drawn.align("left", SPARK_WIDTH)
    return Text.assemble((f"{label:<9}", FAINT), value, "  ", drawn, "  ", (beside, FAINT))


def _services(services: Sequence[ServiceRow], fit: Fit, width: int) -> Iterator[Text]:
    shown = [row for row in services if fit.stopped or row.state != "stopped"]
    if not shown:
        return
    if not fit.table:
        yield from _flowed([Text.assemble(("● ", SERVICE_STYLES[row.state]), row.name) for row in shown], width)
        return
    name = min(NAME_WIDTH, max(7, *(len(row.name) for row in shown)))
    yield Text(f"{'service':<{name}}  {'':<10}{'port':>6}{'pid':>9}{'rpcs':>10}{'tokens':>13}  weights", style=FAINT)
    for row in shown:
        line = Text.assemble(_padded(row.name, name), "  ", (f"{row.state:<10}", SERVICE_STYLES[row.state]))
        line.append(f"{row.port:>6}{row.pid:>9}{row.rpcs:>10,}{row.tokens:>13,}")
        line.append(f"  {'' if row.weight_step is None else f'step {row.weight_step}':<7}")
        yield line.append(f"  ↻ {row.restarts}" if row.restarts else "", style="yellow")


def _flowed(parts: Sequence[Text], width: int) -> Iterator[Text]:
    """Parts side by side, as many in a line as fit."""
    line = Text()
    for part in parts:
        if line and line.cell_len + 3 + part.cell_len > width:
            yield line
            line = Text()
        line = Text.assemble(line, "   " if line else "", part)
    yield line


def _warning(message: Message) -> Text:
    clocked = time.strftime("%H:%M:%S ", time.localtime(message.time))
    return Text.assemble((clocked, FAINT), (message.text, "yellow"))


def _padded(name: str, width: int, style: str = "") -> Text:
    text = Text(name, style=style)
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def _cut(text: Text, width: int) -> Text:
    """One line, whatever a name or a message holds."""
    (text,) = text.split("\n", allow_blank=True)[:1] or [Text()]
    text.no_wrap, text.overflow = True, "ellipsis"
    text.rstrip()
    text.truncate(width, overflow="ellipsis")
    return text


def bar(fraction: float | None, width: int = SPARK_WIDTH) -> Text:
    """A thin bar; empty when the share is unknown."""
    if fraction is None:
        return Text("─" * width, style=FAINT)
    full = round(min(1.0, max(0.0, fraction)) * width)
    return Text.assemble(("━" * full, "cyan"), ("─" * (width - full), FAINT))


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as block characters between their own minimum and maximum."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)
