"""The launcher's side of the fork server: child processes with names, logs and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lodestar.cores import spin_shortly
from lodestar.errors import FailedPrecondition, LodestarError, NonFinite, RunPaused

OWN_ERRORS: dict[int, type[LodestarError]] = {
    error.exit_code: error for error in (FailedPrecondition, NonFinite, RunPaused)
}
"""Exit codes by which a child says that trying again would end the same way."""


IMPORT_SECONDS = 600.0
"""For the fork server's imports, which a busy machine takes minutes for; one that dies is noticed at once."""


class Child:
    """One forked process. ``exit_code`` is None while it lives; negative when a signal ended it."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        self.exit_code: int | None = None
        self._born = threading.Event()
        self._ended = threading.Event()

    def started(self, pid: int) -> None:
        """The fork server's first word about it."""
        self.pid = pid
        self._born.set()

    def ended(self, exit_code: int) -> None:
        """The fork server's last word about it."""
        self.exit_code = exit_code
        self._born.set()
        self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or None after the timeout."""
        self._ended.wait(timeout)
        return self.exit_code

    def wait_born(self, timeout: float) -> None:
        """Waits for the pid."""
        if not self._born.wait(timeout):
            raise LodestarError(f"the fork server did not start {self.name} within {timeout:.0f} s")

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL to its whole group after the grace time."""
        self._signal(signal.SIGTERM)
        if self.wait(grace_seconds) is None:
            self.kill()
            self.wait(5)

    def terminate(self) -> None:
        """SIGTERM without waiting."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and all that it started."""
        if self.alive and self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_error(self) -> str:
        """What the log says went wrong: its last ``error:`` line, or the last line there is."""
        lines = self.tail(200).splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else (lines[-1] if lines else "it wrote nothing to its log")

    def error(self) -> LodestarError:
        """Why it ended, as an error with its exit code."""
        code = self.exit_code or 0
        if code < 0:
            return LodestarError(f"{self.name} was killed by signal {-code}; see {self.log}")
        said = self.last_error()
        return OWN_ERRORS.get(code, LodestarError)(
            said if code in OWN_ERRORS else f"{self.name}: {said}; see {self.log}"
        )

    def tail(self, lines: int) -> str:
        """The log's last lines."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 400 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def _signal(self, number: int) -> None:
        if self.alive and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Processes:
    """Starts a fork server and children of it; a context manager that leaves none behind."""

    def __init__(self, logs: Path, preload: Sequence[str] = ()) -> None:
        """``preload`` names the modules that the server imports; empty means all that a run's children need."""
        self._logs = logs
        self._preload = preload
        self._children: dict[int, Child] = {}
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self.server_threads = 0
        """Threads of the fork server after its imports: 1, or forking it would not be sound."""
        self.closed = False
        self.on_exit: Callable[[Child], None] = lambda _child: None

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        self._channel = ours
        spin_shortly()
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",  # its pool would start at import, before the fork
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with (self._logs / "forkserver.log").open("ab") as log, theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", "lodestar.local.forkserver", str(theirs.fileno()), *self._preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is the launcher's to handle: it stops everything in order
            )
        self._reader = threading.Thread(target=self._read, name="fork-server-reader", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        for child in self._children.values():
            child.kill()
        self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._reader.join()
        self._channel.close()

    def start(self, name: str, target: str, argument: dict[str, Any], *, nice: int = 0) -> Child:
        """Forks a child that calls ``target`` (``module:function``) with the argument and logs to logs/NAME.log.

        Waits for the fork server's imports when they are not done. ``nice`` is how polite the child's
        compute threads are to the rest of the run, 0 … 19 (lodestar.manners).

        Raises:
            LodestarError: the fork server is gone.
        """
        child = Child(name, self._logs / f"{name}.log")
        with self._lock:
            number = len(self._children) + 1
            self._children[number] = child
        request = {
            "id": number,
            "name": name,
            "target": target,
            "argument": argument,
            "log": str(child.log),
            "nice": nice,
        }
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise LodestarError(f"the fork server is gone ({error}); see {self._logs / 'forkserver.log'}") from error
        child.wait_born(IMPORT_SECONDS)
        if child.pid == 0:
            raise LodestarError(f"the fork server is gone; see {self._logs / 'forkserver.log'}")
        return child

    def wait_ready(self, timeout: float) -> bool:
        """Whether the fork server finished its imports within the timeout."""
        return self._ready.wait(timeout)

    def _read(self) -> None:
        with self._channel.makefile("rb") as lines:
            for line in lines:
                self._handle(json.loads(line))
        for child in list(self._children.values()):
            if child.alive:
                child.ended(-signal.SIGKILL)

    def _handle(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.server_threads = message["ready"]
            self._ready.set()
            return
        child = self._children[message["id"]]
        if "pid" in message:
            child.started(message["pid"])
        else:
            child.ended(message["status"])
            self.on_exit(child)
