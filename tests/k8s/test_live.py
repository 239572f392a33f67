"""The live view of a submitted run: the API server tells of the fleet, a real learner's service of the progress."""

from __future__ import annotations

import asyncio
import io
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from lodestar_services.learner.servicer import LearnerServicer
from lodestar_services.learner.status import Controls, StatusBoard
from rich.console import Console

from lodestar.config import load_config
from lodestar.errors import Unavailable
from lodestar.kubernetes import Cluster, Fleet, render, status, submit
from lodestar.kubernetes.live import FleetPage, follow, forwarded
from lodestar.local.board import Board, StageRow
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion
from lodestar.rpc.certificates import Authority
from lodestar.rpc.server import Server
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.v1 import learner_pb2_grpc

K8S = Path(__file__).parents[2] / "k8s"
ASKED = RunStatus("mine", ModelInfo("mine", WeightVersion("", 0, ""), ""), RunState.STARTING, 0, 8, 0, 4)


@pytest.fixture(scope="module")
def fleet(kustomize: object, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text("name: mine\n")
    return render(load_config(path), K8S / "overlays" / "cpu-dev")


@pytest.fixture
def cluster(api: Any, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr("lodestar.kubernetes.cluster.RESYNC_SECONDS", 1)
    monkeypatch.setattr("lodestar.kubernetes.live._RETRY_SECONDS", 0.05)
    configuration = client.Configuration(host=api.url)
    with client.ApiClient(configuration) as connection:
        made = Cluster(connection, "lodestar", "there")
        submit(made, fleet)
        yield made


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a kubectl first on the path that notes its arguments, says a line, and stays."""

    def put(line: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script, notes = folder / "kubectl", folder / "arguments"
        script.write_text(
            f"#!{sys.executable}\nimport sys, time\nopen({str(notes)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
            f"print({line!r}, flush=True)\ntime.sleep(60 if {line!r}.startswith('Forwarding') else 0)\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        return notes

    return put


def learner_pod(**containers: dict[str, Any]) -> dict[str, Any]:
    started = "2026-01-01T00:00:00Z"
    states = {
        name: {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "lastState": {}}
        | {"state": {"running": {"startedAt": started}} if state is None else {"terminated": state | {"reason": "x"}}}
        for name, state in containers.items()
    }
    images = [{"name": name, "image": "i", "resources": {}} for name in states]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "learner-mine-x",
            "labels": {"lodestar.dev/run": "mine", "app.kubernetes.io/component": "learner"},
        },
        "spec": {"containers": images},
        "status": {"phase": "Running", "containerStatuses": list(states.values())},
    }


@asynccontextmanager
async def learner(folder: Path, tls: Path | None = None) -> AsyncIterator[tuple[StatusBoard, int]]:
    board = StatusBoard(ASKED, asyncio.get_running_loop())
    add = partial(learner_pb2_grpc.add_LearnerServiceServicer_to_server, LearnerServicer(board, Controls()))
    server = Server(
        ServerSpec("learner", [Service("lodestar.v1.LearnerService", add)], folder, tls=tls, drain_seconds=0)
    )
    state = await server.start()
    await server.become_ready()
    try:
        yield board, state.port
    finally:
        await server.stop()


async def until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not said():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def finish(api: Any) -> None:
    api.put("jobs", api.objects["jobs", "learner-mine"] | {"status": {"succeeded": 1}})


@pytest.mark.parametrize("speaks_tls", [False, True])
async def test_a_followed_run_shows_its_fleet_and_its_steps_to_the_end(
    api: Any,
    cluster: Cluster,
    kubectl: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    speaks_tls: bool,
) -> None:
    lines: list[str] = []

    def shown() -> str:
        lines.append(capsys.readouterr().out)
        return "".join(lines)

    operator = served = None
    if speaks_tls:
        authority = Authority.create()
        operator, served = tmp_path / "operator", tmp_path / "learner"
        authority.issue(operator, "operator", "ann")
        authority.issue(served, "worker", "learner")
    api.put("pods", learner_pod(**{"train-sft": None}))
    async with learner(tmp_path / "run", served) as (board, port):
        notes = kubectl(f"Forwarding from 127.0.0.1:{port} -> 50051")
        following = asyncio.create_task(asyncio.to_thread(follow, cluster, "mine", plain=True, tls=operator))
        await until(lambda: "policy: 0 of 1 ready" in shown())
        assert not notes.exists(), "there is no learner to ask while the stages train"
        done = {"exitCode": 0, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}
        api.put("pods", learner_pod(**{"train-sft": done, "lodestar": None}))
        board.update(state=RunState.COLLECTING, step=3, metrics={"score": 0.5}, eta_seconds=9.0)
        await until(lambda: "step 3/8  score +0.500" in shown())
        assert notes.read_text() == "--context there --namespace lodestar port-forward pod/learner-mine-x :50051"
        finish(api)
        ended = await following
    assert ended.finished
    assert "cannot be asked" not in shown()


async def test_a_learner_that_wants_a_certificate_is_said_to(
    api: Any, cluster: Cluster, kubectl: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority.create()
    authority.issue(tmp_path / "learner", "worker", "learner")
    api.put("pods", learner_pod(lodestar=None))
    lines: list[str] = []

    def shown() -> str:
        lines.append(capsys.readouterr().out)
        return "".join(lines)

    async with learner(tmp_path / "run", tmp_path / "learner") as (_, port):
        kubectl(f"Forwarding from 127.0.0.1:{port} -> 50051")
        following = asyncio.create_task(asyncio.to_thread(follow, cluster, "mine", plain=True, tls=None))
        await until(lambda: "wants --tls, the folder with an operator's certificate" in shown())
        finish(api)
        await following


def test_a_port_that_cannot_be_forwarded_is_kubectls_to_explain(
    cluster: Cluster, kubectl: Callable[[str], Path]
) -> None:
    kubectl('Error from server (Forbidden): pods "learner-mine-x" is forbidden')
    with pytest.raises(Unavailable, match="is forbidden"), forwarded(cluster, "learner-mine-x", 50051):
        pass


def test_the_page_shows_stages_workloads_and_what_is_wrong(api: Any, cluster: Cluster) -> None:
    waiting = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    manifest = learner_pod(**{"train-sft": None})
    manifest["status"] = {"phase": "Pending", "conditions": [waiting | {"message": "3 Insufficient nvidia.com/gpu"}]}
    api.put("pods", manifest)
    page = FleetPage(Board("mine", [StageRow("sft"), StageRow("ppo")]))
    page.fleet = status(cluster, "mine")
    drawn = io.StringIO()
    Console(width=100, file=drawn, force_terminal=False).print(page)
    text = drawn.getvalue()
    for shown in ("mine", "sft", "ppo", "learner", "0/1", "no node has a free GPU"):
        assert shown in text, shown
