"""The live view of a submitted run: its fleet as the API server tells, its progress as the learner itself does.

The learner is asked through ``kubectl port-forward``, so that nothing of the fleet needs to be reachable from outside.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lodestar.client import LearnerClient
from lodestar.errors import LodestarError, Unauthenticated, Unavailable
from lodestar.kubernetes.namespace import Namespace
from lodestar.kubernetes.fleet_status import FleetStatus, StageStatus, watch
from lodestar.local.board import Board, StageRow, StageState
from lodestar.local.view import Page, live_view, plain_view, quiet_table

GRPC_PORT = 50051
STAGES = {"train-sft": "sft", "train-reward": "reward", "lodestar": "ppo"}
"""Containers of the learner's pod → stages of the run."""
_RETRY_SECONDS = 2.0
_FORWARDING = re.compile(r"Forwarding from (?:127\.0\.0\.1|\[::1\]):(\d+) ->")


class FleetPage(Page):
    """The page of a local run, with the fleet's workloads in place of processes."""

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.fleet: FleetStatus | None = None

    def _services(self) -> Table | None:
        if self.fleet is None:
            return None
        table = quiet_table()
        table.add_column("service")
        table.add_column("ready", justify="right")
        table.add_column("")
        for workload in self.fleet.workloads:
            well = workload.ready >= workload.wanted
            ready = Text(f"{workload.ready}/{workload.wanted}", style="green" if well else "yellow")
            table.add_row(workload.role, ready, Text("\n".join(workload.problems), style="yellow"))
        return table


def follow(cluster: Namespace, run: str, *, plain: bool, tls: Path | None) -> FleetStatus:
    """Draws the run until it is finished or given up; how it stood then.

    Args:
        plain: lines instead of a page.
        tls: folder with an operator's certificate, where the fleet speaks TLS.
    """
    board = Board(run, [StageRow(name) for name in STAGES.values()])
    page = FleetPage(board)
    progress = _Progress(cluster, board, tls)
    with plain_view(board) if plain else live_view(board, page), progress:
        for fleet in watch(cluster, run):
            _tell(page.fleet, fleet, board)
            page.fleet = fleet
            progress.pod = fleet.learner if _runs_ppo(fleet) else ""
    return fleet


def _runs_ppo(fleet: FleetStatus) -> bool:
    return any(s.name == "lodestar" and s.started is not None and s.ended is None for s in fleet.stages)


def _tell(before: FleetStatus | None, now: FleetStatus, board: Board) -> None:
    """Brings the board's stages up to date, and says what is newly wrong or right."""
    for stage in now.stages:
        if stage.name in STAGES:
            _show(stage, board.stage(STAGES[stage.name]))
    known = {problem for workload in before.workloads for problem in workload.problems} if before else set()
    ready = {workload.role: workload.ready for workload in before.workloads} if before else {}
    for workload in now.workloads:
        for problem in workload.problems:
            if problem not in known:
                board.say(problem, "warning")
        if ready.get(workload.role) != workload.ready:
            board.say(f"{workload.role}: {workload.ready} of {workload.wanted} ready")


def _show(stage: StageStatus, row: StageRow) -> None:
    if stage.started is None:
        return
    state: StageState = "running"
    if stage.ended is not None:
        state = "failed" if stage.exit_code else "done"
        row.seconds = stage.ended - stage.started
    row.started = time.monotonic() - (time.time() - stage.started)
    row.state = state


class _Progress:
    """Asks the learner on a thread, over its restarts, while ``pod`` names one that runs."""

    def __init__(self, cluster: Namespace, board: Board, tls: Path | None) -> None:
        self.pod = ""
        self._cluster = cluster
        self._board = board
        self._tls = tls
        self._ended = threading.Event()
        self._complained = ""
        self._learner: LearnerClient | None = None
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if (learner := self._learner) is not None:
            learner.close()  # ends the stream, and kubectl with it
        self._thread.join(2 * _RETRY_SECONDS + 1.0)

    def _follow(self) -> None:
        while not self._ended.wait(_RETRY_SECONDS):
            if not self.pod:
                continue
            try:
                with (
                    forwarded(self._cluster, self.pod, GRPC_PORT) as port,
                    LearnerClient(f"localhost:{port}", tls=self._tls) as learner,
                ):
                    self._learner = learner
                    for status in learner.watch():
                        self._board.update_status(status)
                        self._complained = ""
                        if self._ended.is_set():
                            return
            except LodestarError as error:
                self._complain(error)
            except ValueError:  # the channel was closed under us
                return
            finally:
                self._learner = None

    def _complain(self, error: LodestarError) -> None:
        """Once per reason: the fleet is shown all the same."""
        hint = ""
        if self._tls is None and isinstance(error, Unavailable | Unauthenticated):
            hint = "; a fleet that speaks TLS wants --tls, the folder with an operator's certificate"
        if type(error).__name__ != self._complained and not self._ended.is_set():
            self._complained = type(error).__name__
            self._board.say(f"the learner cannot be asked: {error}{hint}", "warning")


@contextmanager
def forwarded(cluster: Namespace, pod: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to one of a pod, by ``kubectl port-forward``.

    Raises:
        Unavailable: kubectl is missing, or says why it cannot.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise Unavailable("kubectl is not installed; it forwards the learner's port")
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
