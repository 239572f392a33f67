"""One launcher per run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lodestar.errors import FailedPrecondition


@contextlib.contextmanager
def locked(folder: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the folder's launcher lock; the kernel drops it however this process ends.

    Args:
        wait_seconds: how long another process may take to give it back.

    Raises:
        FailedPrecondition: another process holds it; the message names its pid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while not _taken(file.fileno()):
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise FailedPrecondition(
                f"{folder}: another launcher (pid {owner}) runs this; wait for it, stop it, or choose another name=…"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
