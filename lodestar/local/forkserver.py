"""A process that has the heavy imports behind it and forks a child per request.

Five services on two cores would each pay the imports of torch and transformers; forked children share them, memory
included. The standard library's forkserver does the same but leaves its socket's folder behind when its parent is
killed, and tells exit codes only through resources of its own, so this one speaks a small protocol over an inherited
socket: a JSON object per line.

    → {"id": 1, "name": "policy-0", "target": "module:function", "argument": {…}, "log": "path", "nice": 0}
    ← {"ready": threads}    once, after the imports: threads of this process, which must be 1 for a fork to be sound
    ← {"id": 1, "pid": 4711}
    ← {"id": 1, "status": 0}    exit code, or minus the signal that ended it

The parent's side is lodestar.local.processes. When the socket closes, every child is killed and the server ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lodestar.errors import LodestarError
from lodestar.files import full_disk
from lodestar.local.lifeline import die_with_parent
from lodestar.manners import be_polite

PRELOAD = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "grpc.aio",
    "grpc_health.v1.health_pb2_grpc",
    "redis.asyncio",
    "lodestar.crew.work",
    "lodestar.data.prepare",
    "lodestar.train",
    "lodestar.evaluation",
)
SERVICES = "lodestar.services"
"""Entry-point group of the services' main functions."""


class ForkServer:
    """The loop: one request, one fork."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = b""
        self._children: dict[int, int] = {}
        """pid → request id."""

    def serve(self) -> dict[str, Any] | None:
        """Serves until the parent goes. Returns the request in a forked child, None in the server at its end."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._channel, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                    continue
                requests = self._requests()
                if requests is None:
                    self._kill_all()
                    return None
                for request in requests:
                    if self._fork(request) == 0:
                        selector.close()
                        os.close(wake_read)
                        os.close(wake_write)
                        return request

    def announce(self) -> None:
        """Tells the parent that the imports are done."""
        self._send({"ready": threading.active_count() if sys.platform != "linux" else _native_threads()})

    def _requests(self) -> list[dict[str, Any]] | None:
        try:
            received = self._channel.recv(2**16)
        except ConnectionError:
            return None
        if not received:
            return None
        *lines, self._received = (self._received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def _fork(self, request: dict[str, Any]) -> int:
        server = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._channel.close()
            os.setpgid(0, 0)
            die_with_parent(server)
        else:
            with contextlib.suppress(OSError):  # the child does the same; whoever comes first
                os.setpgid(pid, pid)
            self._children[pid] = request["id"]
            self._send({"id": request["id"], "pid": pid})
        return pid

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _kill_group(pid)
                self._send({"id": self._children.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _kill_all(self) -> None:
        for pid in self._children:
            _kill_group(pid)
            os.waitpid(pid, 0)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # a parent that is gone is noticed by the next read
            self._channel.sendall(json.dumps(message).encode() + b"\n")


def _kill_group(pid: int) -> None:
    """A child leads its own process group: what it started goes with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def heavy_modules() -> list[str]:
    """What children of a run need: PRELOAD and the services that are installed."""
    return [*PRELOAD, *(service.module for service in importlib.metadata.entry_points(group=SERVICES))]


def _preload(modules: Iterable[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # the child that needs it meets the same error and ends with it
            traceback.print_exc()
    gc.collect()
    gc.freeze()


def run(request: dict[str, Any]) -> int:
    """A child's work: redirects its output to its log and calls the target. Returns the exit code.

    A LodestarError becomes one line, ``error: …``, and its own exit code; so does a defect, after its traceback.
    Whoever asks why the child ended finds that line: libraries may write others while the process goes.
    """
    log = Path(request["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    be_polite(request["nice"])
    module, _, function = request["target"].partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(request["argument"])
    except LodestarError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        if full := full_disk(error):
            print(f"error: {full}", file=sys.stderr, flush=True)
            return full.exit_code
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return int(status or 0)


def main() -> int:
    """``python -m lodestar.local.forkserver FD [MODULE …]``: with modules, those are imported and no others."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _preload(sys.argv[2:] or heavy_modules())
    server = ForkServer(channel)
    server.announce()
    request = server.serve()
    return 0 if request is None else run(request)


if __name__ == "__main__":
    sys.exit(main())
