"""Keeps the board true while services run: their metrics, and the learner's own word about the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from lodestar.client import LearnerClient
from lodestar.errors import LodestarError
from lodestar.local.board import Board
from lodestar.local.fleet import Fleet

SCRAPE_SECONDS = 1.0
RETRY_SECONDS = 0.5


class Watcher:
    """Two threads that read and never steer."""

    def __init__(self, fleet: Fleet, board: Board) -> None:
        self._fleet = fleet
        self._board = board
        self._stop = threading.Event()
        self._scraper = threading.Thread(target=self._scrape, name="scraper", daemon=True)

    def __enter__(self) -> Watcher:
        self._scraper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._scraper.join()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follows the learner's status while it lives, over its restarts."""
        ended = threading.Event()
        client = LearnerClient(self._fleet.addresses("learner")[0])
        thread = threading.Thread(target=self._follow, args=(client, ended), name="status-watcher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            client.close()
            thread.join(5)

    def services(self) -> list[dict[str, Any]]:
        """What the summary tells of every service."""
        return [
            {
                "name": row.name,
                "pid": row.pid,
                "port": row.port,
                "restarts": row.restarts,
                "rpcs": row.rpcs,
                "tokens": row.tokens,
            }
            for row in self._board.services
        ]

    def _scrape(self) -> None:
        while not self._stop.wait(SCRAPE_SECONDS):
            self._fleet.scrape()

    def _follow(self, client: LearnerClient, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                for status in client.watch():
                    self._board.update_status(status)
            except (LodestarError, ValueError):  # not up yet, restarting, or the channel was closed under us
                pass
            ended.wait(RETRY_SECONDS)
