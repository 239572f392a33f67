"""Files that may be replaced while a process uses them: certificates, keys, tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from lodestar.errors import ConfigError

log = logging.getLogger(__name__)
Content = TypeVar("Content")


class Renewed(Generic[Content]):
    """What some files hold, read again when they change; safe to ask from any thread.

    A change that cannot be used (half written, expired) is logged once and what was read before stays.
    """

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], Content]) -> None:
        """``what`` names the files' content in the log; ``read`` raises ConfigError for files that cannot be used.

        Raises:
            ConfigError: they cannot be used now.
        """
        self._what = what
        self._files = files
        self._read = read
        self._lock = threading.Lock()
        self._stamps = self._seen()
        self._content = read()

    def present(self) -> Content:
        """The newest usable content."""
        with self._lock:
            stamps = self._seen()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._content = self._read()
                    log.info("the changed %s in %s are in use", self._what, self._files[0].parent)
                except ConfigError as error:
                    log.error("the changed %s are not used, the old ones stay: %s", self._what, error)
            return self._content

    def _seen(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
