"""Keeps the board true about a stage that serves its own status."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

from lodestar.client import LearnerClient
from lodestar.errors import LodestarError
from lodestar.local.board import Board
from lodestar.local.progress import ProgressReader

RETRY_SECONDS = 0.5


class StatusFollower:
    """Follows a learner's status and running win rates on a thread, over its restarts; a context manager."""

    def __init__(self, board: Board, stage: str, address: str, watched: Path, *, tls: Path | None = None) -> None:
        self._board = board
        self._stage = stage
        self._address = address
        self._client = LearnerClient(address, tls=tls)
        self._rates = ProgressReader(watched)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="status-follower", daemon=True)

    def __enter__(self) -> Self:
        self._board.status = None
        self._board.learner = self._address
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._board.learner = None
        self._ended.set()
        self._client.close()
        self._thread.join(5)

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                for status in self._client.watch():
                    self._board.update_status(self._stage, status)
                    for rate in self._rates.new():
                        self._board.win_rate = rate
            except (LodestarError, ValueError):  # not up yet, restarting, or the channel was closed under us
                pass
            self._ended.wait(RETRY_SECONDS)
