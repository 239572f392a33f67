"""The live view of a submitted run: the API server tells of the fleet, a real conductor's service of the stages."""

from __future__ import annotations

import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from lodestar.cli.cluster import show_status
from lodestar.config import load_config
from lodestar.config.run import RunConfig
from lodestar.config.serve import Listening
from lodestar.crew.here import board_of
from lodestar.crew.status import served
from lodestar.errors import Unavailable
from lodestar.kubernetes import Fleet, Namespace, render, submit
from lodestar.kubernetes.fleet_status import FleetStatus
from lodestar.kubernetes.live import follow, forwarded, told
from lodestar.local.board import Board
from lodestar.recipe.plan import plan
from lodestar.rpc.certificates import Authority

K8S = Path(__file__).parents[2] / "k8s"


@pytest.fixture(scope="module")
def fleet(kustomize: object, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text("name: mine\n")
    return render(load_config(path), K8S / "overlays" / "cpu-dev")


@pytest.fixture
def cluster(api: Any, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    monkeypatch.setattr("lodestar.kubernetes.namespace.RESYNC_SECONDS", 1)
    monkeypatch.setattr("lodestar.kubernetes.live._RETRY_SECONDS", 0.05)
    configuration = client.Configuration(host=api.url)
    with client.ApiClient(configuration) as connection:
        made = Namespace(connection, "lodestar", "there")
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


def conductor_pod(phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "conductor-mine-x",
            "labels": {"lodestar.dev/run": "mine", "app.kubernetes.io/component": "conductor"},
        },
        "spec": {"containers": [{"name": "lodestar", "image": "i", "resources": {}}]},
        "status": {"phase": phase, **status},
    }


@contextmanager
def conducted(folder: Path, tls: Path | None = None) -> Iterator[tuple[Board, str]]:
    """A conductor's board, and the port that it is served on."""
    run = RunConfig(name="mine")
    board = board_of(run, plan(run))
    with served(board, folder, Listening(tls=tls)) as address:
        yield board, address.rpartition(":")[2]


def until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(api: Any) -> None:
    ended = [{"type": "Complete", "status": "True", "message": "", "reason": "r"}]
    api.put("jobs", api.objects["jobs", "conductor-mine"] | {"status": {"conditions": ended}})


class Following:
    """``follow`` on a thread."""

    def __init__(self, cluster: Namespace, tls: Path | None) -> None:
        self.ended: list[FleetStatus] = []
        work = lambda: self.ended.append(follow(cluster, "mine", plain=True, tls=tls))  # noqa: E731
        self.thread = threading.Thread(target=work)
        self.thread.start()


@pytest.mark.parametrize("speaks_tls", [False, True])
def test_a_followed_run_shows_its_stages_to_the_end(
    api: Any,
    cluster: Namespace,
    kubectl: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    speaks_tls: bool,
) -> None:
    lines: list[str] = []

    def shown() -> str:
        lines.append(capsys.readouterr().out)
        return "".join(lines)

    operator = own = None
    if speaks_tls:
        authority = Authority.create()
        operator, own = tmp_path / "operator", tmp_path / "conductor"
        authority.issue(operator, "operator", "ann")
        authority.issue(own, "operator", "conductor")
    waiting = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    api.put("pods", conductor_pod("Pending", conditions=[waiting]))
    with conducted(tmp_path / "run", own) as (board, port):
        notes = kubectl(f"Forwarding from 127.0.0.1:{port} -> 50051")
        following = Following(cluster, operator)
        until(lambda: "conductor-mine-x: cannot be scheduled (0/3 nodes)" in shown())
        assert not notes.exists(), "there is nobody to ask yet"
        api.put("pods", conductor_pod())
        board.say("sft: starts")
        until(lambda: "sft: starts" in shown())
        assert notes.read_text() == "--context there --namespace lodestar port-forward pod/conductor-mine-x :50051"
        finish(api)
        following.thread.join(30)
    (ended,) = following.ended
    assert ended.finished
    assert "cannot be asked" not in shown()


def test_a_conductor_that_wants_a_certificate_is_said_to(
    api: Any, cluster: Namespace, kubectl: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority.create()
    authority.issue(tmp_path / "conductor", "operator", "conductor")
    api.put("pods", conductor_pod())
    lines: list[str] = []

    def shown() -> str:
        lines.append(capsys.readouterr().out)
        return "".join(lines)

    with conducted(tmp_path / "run", tmp_path / "conductor") as (_, port):
        kubectl(f"Forwarding from 127.0.0.1:{port} -> 50051")
        following = Following(cluster, None)
        until(lambda: "wants --tls, the folder with an operator's certificate" in shown())
        finish(api)
        following.thread.join(30)


def test_a_port_that_cannot_be_forwarded_is_kubectls_to_explain(
    cluster: Namespace, kubectl: Callable[[str], Path]
) -> None:
    kubectl('Error from server (Forbidden): pods "conductor-mine-x" is forbidden')
    with pytest.raises(Unavailable, match="is forbidden"), forwarded(cluster, "conductor-mine-x", 50051):
        pass


def test_a_status_is_what_the_conductor_says_and_what_the_cluster_does(
    cluster: Namespace, api: Any, kubectl: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Namespace, "connect", lambda *_: cluster)
    api.put("pods", conductor_pod())
    with conducted(tmp_path / "run") as (board, port):
        kubectl(f"Forwarding from 127.0.0.1:{port} -> 50051")
        board.kept("data", 4.0)
        assert told(cluster, "conductor-mine-x", None).stage("data").state == "kept"
        show_status("mine", namespace="lodestar", context=None, follow=False, plain=True, tls=None)
    out = capsys.readouterr().out
    for shown in ("kept from before", "mine: running", "conductor", "policy", "0/0"):
        assert shown in out, shown


def test_a_run_of_this_machine_is_told_of_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "config.yaml").write_text(f"name: mine\nruns_dir: {tmp_path}\n")
    show: dict[str, Any] = {"namespace": "lodestar", "context": None, "plain": True, "tls": None}
    with conducted(root) as (board, _):
        board.stage("sft").detail, board.stage("sft").state = "loss 1.2", "running"
        show_status(str(root), follow=False, **show)
        assert "loss 1.2" in capsys.readouterr().out
        watching = threading.Thread(target=lambda: show_status(str(root), follow=True, **show))
        watching.start()
        board.say("sft: half-way")
        lines: list[str] = []
        until(lambda: lines.append(capsys.readouterr().out) or "sft: half-way" in "".join(lines))
    watching.join(30)
    assert not watching.is_alive()
    assert "nothing conducts it; data, sft" in capsys.readouterr().out
