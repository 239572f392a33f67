"""Answers of one language model: asked for at a bounded rate, kept by digest of what was asked, and counted.

They lie in ``FOLDER/IDENTITY.jsonl``, a line each, written as they come:

    {"key": sha256 of what was asked, "text", "ended", "prompt_tokens", "completion_tokens", …what was read of it}

so a stage that is killed asks for the rest, and one that is asked the same again asks for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lodestar.errors import DataError
from lodestar.files import json_line, numbered_rows
from lodestar.llm.options import ReachOptions
from lodestar.llm.port import Answer, Ask, LanguageModel

Row = Mapping[str, Any]
Reading = Callable[[Answer], Row]
_COUNTS = ("prompt_tokens", "completion_tokens")
_WANTED: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "text": str,
    "ended": bool,
    "prompt_tokens": (int, type(None)),
    "completion_tokens": (int, type(None)),
}


def nothing(answer: Answer) -> Row:
    """Reads no more of an answer than its text."""
    return {}


class Answers:
    """An async context manager: ``row = await answers.of(ask)``. The model is closed at its end."""

    def __init__(self, model: LanguageModel, options: ReachOptions, folder: Path) -> None:
        self._model = model
        self._options = options
        self._folder = folder
        self._known: dict[str, Row] = {}
        self._used: dict[str, Row] = {}
        self._kept = 0
        self._admitted = asyncio.Semaphore(options.in_flight)
        self._pace = Pace(options.requests_per_minute)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Reads what is kept.

        Raises:
            DataError: the file is damaged.
        """
        self._open.push_async_callback(self._model.close)
        try:
            path = self._folder / f"{await self._model.identity()}.jsonl"
            self._known = _read(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open.enter_context(path.open("a", encoding="utf-8"))
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def of(self, ask: Ask, reading: Reading = nothing) -> Row:
        """The kept answer, else a new one, with what ``reading`` finds in it.

        Raises:
            InvalidArgument, LodestarError: as LanguageModel.ask.
        """
        key = hashlib.sha256(json.dumps([asdict(ask), reading.__qualname__]).encode()).hexdigest()
        if key in self._known:
            self._kept += key not in self._used
        else:
            async with self._admitted:
                await self._pace.wait()
                answer = await self._model.ask(ask)
            row = {name: getattr(answer, name) for name in ("text", "ended", *_COUNTS)}
            self._known[key] = {"key": key, **row, **reading(answer)}
            self._file.write(json_line(self._known[key]))
            self._file.flush()
        self._used[key] = self._known[key]
        return self._known[key]

    def figures(self) -> dict[str, float]:
        """What the answers that were used cost, whenever they were asked for: ``answers``, of these ``kept`` from
        before, tokens both ways, ``cost`` where prices are set, and ``uncounted`` answers of a server that does not
        tell its tokens."""
        rows = list(self._used.values())
        asked, answered = (sum(row[name] or 0 for row in rows) for name in _COUNTS)
        found = {"answers": len(rows), "kept": self._kept, "prompt_tokens": asked, "completion_tokens": answered}
        if untold := sum(row["prompt_tokens"] is None for row in rows):
            found["uncounted"] = untold
        options = self._options
        if options.input_price or options.output_price:
            return found | {"cost": (asked * options.input_price + answered * options.output_price) / 1e6}
        return dict(found)


class Pace:
    """Lets one through every 60 / rate seconds."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart = 0.0 if per_minute is None else 60 / per_minute
        self._next = 0.0

    async def wait(self) -> None:
        """Until it is this one's turn."""
        if not self._apart:
            return
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._apart
        await asyncio.sleep(turn - now)


def _read(path: Path) -> dict[str, Row]:
    """What is kept; a last line that a killed process began is cut off."""
    if not path.exists():
        return {}
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    found: dict[str, Row] = {}
    for number, row in numbered_rows(path):
        if not all(name in row and isinstance(row[name], kind) for name, kind in _WANTED.items()):
            raise DataError(path, "is no kept answer; delete the file, and the model is asked again", line=number)
        found[row["key"]] = row
    return found
