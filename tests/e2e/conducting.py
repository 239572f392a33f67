"""A tiny run conducted in this process, with somebody looking on: what the tests of faults share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lodestar.client import LearnerClient
from lodestar.config import RunConfig
from lodestar.crew.fleet import Member
from lodestar.crew.inline import run_with
from lodestar.crew.local import Local
from lodestar.errors import LodestarError
from lodestar.files import read_jsonl
from lodestar.local.board import Board
from lodestar.recipe.store import Store


class Watched(Local):
    """The local crew, with what faults strike."""

    @property
    def learner(self) -> str:
        """Address of the stage's own server."""
        return f"127.0.0.1:{self._listening.port}"

    @property
    def board(self) -> Board:
        return self._board

    def member(self, name: str) -> Member:
        return next(member for member in self.fleet.members if member.name == name)

    def kill(self, name: str) -> Callable[[], None]:
        return lambda: os.kill(self.member(name).child.pid, signal.SIGKILL)


class Run:
    """``Run(config).conduct(lambda crew: [Fault(crew, 2, crew.kill("policy-0"))])``."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.root = Path(config.runs_dir) / config.name
        self.store = Store(self.root, config)
        self.crew: Watched

    def conduct(
        self,
        faults: Callable[[Watched], list[Fault]] = lambda _: [],
        hear: Callable[[str], None] = lambda _: None,
    ) -> dict[str, int]:
        """To its end; every fault must have struck on the way. Returns restarts by name.

        ``hear`` gets every line that the run says.
        """
        struck: list[Fault] = []

        def look(crew: Watched) -> None:
            if getattr(self, "crew", None) is not crew:
                self.crew = crew
                crew.board.listener = lambda message: hear(message.text)
                struck.extend(faults(crew))
            if waiting := [fault for fault in struck if not fault.struck]:
                waiting[0].look()  # one after another

        run_with(Watched, self.config, look=look)
        assert [fault.struck for fault in struck] == [True] * len(struck)
        return dict(self.crew.fleet.restarts)

    def figures(self, name: str) -> Path:
        """A file of the PPO stage's figures, finished or not."""
        return self.store.path("ppo/figures") / name

    @property
    def policy(self) -> Path:
        return self.store.path("ppo/policy")

    @property
    def unfinished(self) -> Path:
        return self.root / "ppo" / "unfinished"

    def curve(self) -> list[dict[str, Any]]:
        """metrics.jsonl without what a clock or a dice has a hand in."""
        clocks = ("time", "seconds", "tokens_per_second", "incarnation", "tickets")
        rows = read_jsonl(self.figures("metrics.jsonl"))
        return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


class Fault:
    """Strikes once a PPO step is partly settled; remembers that it did."""

    def __init__(self, crew: Watched, step: int, strike: Callable[[], None]) -> None:
        self._crew = crew
        self._step = step
        self._strike = strike
        self.struck = False

    def look(self) -> None:
        try:
            with LearnerClient(self._crew.learner, timeout=2.0) as client:
                status = client.status()
        except LodestarError:  # not up yet
            return
        if status.step >= self._step and 0 < status.settled < status.batch:
            self._strike()
            self.struck = True
