"""What a run's conductor tells, from outside the cluster: asked through ``kubectl port-forward``, so that nothing of
the fleet needs to be reachable.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lodestar.client import RunClient
from lodestar.errors import LodestarError, Unauthenticated, Unavailable
from lodestar.kubernetes.fleet_status import FleetStatus, watch
from lodestar.kubernetes.namespace import Namespace
from lodestar.local.board import Board
from lodestar.local.view import live_view, plain_view

GRPC_PORT = 50051
_RETRY_SECONDS = 2.0
_FORWARDING = re.compile(r"Forwarding from (?:127\.0\.0\.1|\[::1\]):(\d+) ->")


def follow(cluster: Namespace, run: str, *, plain: bool, tls: Path | None) -> FleetStatus:
    """Draws the run until it is finished or given up; how it stood then.

    Args:
        plain: lines instead of a page.
        tls: folder with an operator's certificate, where the fleet speaks TLS.
    """
    board = Board(run, [])
    follower = _Follower(cluster, board, tls)
    said: set[str] = set()
    with plain_view(board) if plain else live_view(board), follower:
        for fleet in watch(cluster, run):
            follower.pod = fleet.conductor
            problems = {problem for workload in fleet.workloads for problem in workload.problems}
            for problem in sorted(problems - said if not fleet.conductor else ()):  # else the conductor says it
                board.say(problem, "warning")
            said |= problems
    return fleet


def told(cluster: Namespace, pod: str, tls: Path | None) -> Board:
    """What a conductor's pod says now; raises LodestarError where it cannot be asked."""
    with forwarded(cluster, pod, GRPC_PORT) as port, RunClient(f"localhost:{port}", tls=tls) as conductor:
        return conductor.status()


class _Follower:
    """Keeps the board true on a thread, over conductors' restarts, while ``pod`` names one that runs."""

    def __init__(self, cluster: Namespace, board: Board, tls: Path | None) -> None:
        self.pod = ""
        self._cluster = cluster
        self._board = board
        self._tls = tls
        self._ended = threading.Event()
        self._complained = ""
        self._conductor: RunClient | None = None
        self._thread = threading.Thread(target=self._follow, name="run-follower", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if (conductor := self._conductor) is not None:
            conductor.close()  # ends the stream, and kubectl with it
        self._thread.join(2 * _RETRY_SECONDS + 1.0)

    def _follow(self) -> None:
        while not self._ended.wait(_RETRY_SECONDS):
            if not self.pod:
                continue
            try:
                with (
                    forwarded(self._cluster, self.pod, GRPC_PORT) as port,
                    RunClient(f"localhost:{port}", tls=self._tls) as conductor,
                ):
                    self._conductor = conductor
                    self._board.told = 0  # another conductor has messages of its own
                    for _ in conductor.watch(self._board):
                        self._complained = ""
                        if self._ended.is_set():
                            return
            except LodestarError as error:
                self._complain(error)
            except ValueError:  # the channel was closed under us
                return
            finally:
                self._conductor = None

    def _complain(self, error: LodestarError) -> None:
        """Once per reason: what the API server tells is shown all the same."""
        if type(error).__name__ != self._complained and not self._ended.is_set():
            self._complained = type(error).__name__
            self._board.say(f"the conductor cannot be asked: {error}{hint(error, self._tls)}", "warning")


def hint(error: LodestarError, tls: Path | None) -> str:
    """What may be wrong where a conductor cannot be asked."""
    if tls is None and isinstance(error, Unavailable | Unauthenticated):
        return "; a fleet that speaks TLS wants --tls, the folder with an operator's certificate"
    return ""


@contextmanager
def forwarded(cluster: Namespace, pod: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to one of a pod, by ``kubectl port-forward``.

    Raises:
        Unavailable: kubectl is missing, or says why it cannot.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise Unavailable("kubectl is not installed; it forwards the conductor's port")
    context = [] if cluster.context is None else ["--context", cluster.context]
    command = [kubectl, *context, "--namespace", cluster.namespace, "port-forward", f"pod/{pod}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = _FORWARDING.match(line)
            if found is None:
                raise Unavailable(f"kubectl port-forward pod/{pod}: {line.strip() or 'ended without a word'}")
            yield int(found[1])
        finally:
            process.terminate()
