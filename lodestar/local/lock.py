"""One launcher per run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
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
    path = folder / ".lock"
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    deadline = time.monotonic() + wait_seconds
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            if not _taken(file.fileno()):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    owner = file.read().strip() or "unknown"
                    raise FailedPrecondition(
                        f"{folder}: another launcher (pid {owner}) runs this; wait for it, stop it, or choose another "
                        "name=…"
                    )
                time.sleep(0.2)
                continue
            if not _stands(path, file.fileno()):  # whoever held it took it away with an empty folder
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                _leave(path, new or [folder])
            return


def _leave(lock: Path, folders: Sequence[Path]) -> None:
    """Takes the lock away where its folder holds nothing else, and then the folders that are empty, inner first."""
    if all(other == lock for other in lock.parent.iterdir()):
        lock.unlink()
        with contextlib.suppress(OSError):  # somebody else waits for it already
            for folder in folders:
                folder.rmdir()


def _stands(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
