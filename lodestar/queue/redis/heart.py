"""The sign that a run's learner lives, so that no second run takes its name and its keys."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lodestar.queue.address import RedisAddress
from lodestar.queue.connection import close, connect, give_up_idle, run_script
from lodestar.queue.outage import ERRORS
from lodestar.queue.scripts import SCRIPTS

BEAT_SECONDS = 2.0


class Heart:
    """Counts up in Redis every two seconds, on a thread and a connection of its own: a step may take minutes.

    While Redis is away it misses beats; the learner's own calls are the ones that complain.
    """

    def __init__(self, address: RedisAddress, tls: Path | None, key: str, owner: str) -> None:
        """Begins at once."""
        self._address = address
        self._tls = tls
        self._key = key
        self._owner = owner
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="queue-heart", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._thread.join()

    def _beat(self) -> None:
        client: Any = None
        while not self._stopping.is_set():
            try:
                client = client or connect(self._address, self._tls)
                run_script(client, SCRIPTS["BEAT"], [self._key], [self._owner])
            except ERRORS:
                give_up_idle(client)
            self._stopping.wait(BEAT_SECONDS)
        if client is not None:
            close(client)
