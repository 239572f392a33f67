"""RunService on real sockets: what a conductor tells of its run, and what reaches it."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from lodestar_services.learner.servicer import LearnerServicer
from lodestar_services.learner.status import Controls, StatusBoard

from lodestar.client import AsyncRunClient, RunClient
from lodestar.config.run import RunConfig
from lodestar.config.serve import Listening
from lodestar.crew.progress import from_proto, to_proto
from lodestar.crew.status import served
from lodestar.errors import PermissionDenied, RunPaused, Unavailable
from lodestar.local.board import Board, StageRow
from lodestar.recipe.conduct import conduct
from lodestar.recipe.plan import Step, plan
from lodestar.recipe.store import Store
from lodestar.records import ModelInfo, RunState, RunStatus, WeightVersion
from lodestar.rpc.certificates import Authority
from lodestar.rpc.server import Server
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.rpc.state import ServiceState
from lodestar.v1 import learner_pb2_grpc

STATUS = RunStatus("mine", ModelInfo("mine", WeightVersion("", 0, ""), ""), RunState.COLLECTING, 3, 8, 0, 4)


def board() -> Board:
    made = Board("mine", [StageRow("data"), StageRow("sft", 45.0), StageRow("ppo"), StageRow("report")])
    made.kept("data", 4.5)
    made.stage("sft").state, made.stage("sft").seconds = "done", 12.0
    made.stage("sft").cut_short = "320 of 960 steps"
    made.stage("ppo").state, made.stage("ppo").started = "running", time.monotonic() - 65
    made.stage("ppo").detail = "score 0.5"
    row = made.service("policy-0", 50051)
    row.state, row.pid, row.rpcs, row.tokens, row.weight_step, row.restarts = "ready", 4711, 12, 34, 7, 1
    made.update_status("ppo", STATUS)
    made.win_rate = {"step": 5, "value": 0.625, "low": 0.5, "high": 0.75, "n": 64}
    made.queue_waiting = 5
    made.say("policy-0 was killed", "warning")
    return made


@contextmanager
def serving(made: Board, folder: Path, **listening: object) -> Iterator[str]:
    with served(made, folder, Listening.model_validate(listening)) as address:
        yield address


def test_a_board_is_the_same_on_the_other_side() -> None:
    made = board()
    got = from_proto(to_proto(made))
    for name in ("run", "win_rate", "queue_waiting", "queue_taken", "messages", "status"):
        assert getattr(got, name) == getattr(made, name), name
    for theirs, ours in zip(got.stages, made.stages, strict=True):
        for name in ("name", "state", "fraction", "detail", "budget_seconds", "cut_short"):
            assert getattr(theirs, name) == getattr(ours, name), name
        assert theirs.elapsed == pytest.approx(ours.elapsed, abs=5)
    assert got.services == made.services


def test_a_conductor_says_where_it_listens_and_what_it_does(tmp_path: Path) -> None:
    with serving(board(), tmp_path) as address:
        state = ServiceState.read(tmp_path / "services" / "run-0.json")
        assert state.address == address
        with RunClient(address) as conductor:
            got = conductor.status()
        assert [(row.name, row.state) for row in got.stages] == [
            ("data", "kept"), ("sft", "done"), ("ppo", "running"), ("report", "waiting"),
        ]  # fmt: skip
        with urllib.request.urlopen(f"http://127.0.0.1:{state.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert 'lodestar_run_stage_progress{stage="ppo"} 0.375' in text
        assert 'lodestar_run_stage_running{stage="ppo"} 1.0' in text
        assert 'lodestar_run_stage_running{stage="sft"} 0.0' in text
        assert 'lodestar_run_stage_duration_seconds{stage="sft"} 12.0' in text
    assert not (tmp_path / "services" / "run-0.json").exists()
    with RunClient(address) as conductor, pytest.raises(Unavailable):
        conductor.status()


def test_a_watcher_sees_changes_and_each_message_once(tmp_path: Path) -> None:
    made, seen = board(), Board("", [])
    heard: list[str] = []
    seen.listener = lambda message: heard.append(message.text)
    with serving(made, tmp_path) as address, RunClient(address) as conductor:
        watched = conductor.watch(seen)
        next(watched)
        made.stage("ppo").state = "done"
        made.say("ppo: done")
        while seen.stage("ppo").state != "done":
            next(watched)
        watched.close()
    assert heard == ["policy-0 was killed", "ppo: done"]
    assert seen.status == STATUS


async def test_the_client_for_asyncio_sees_the_same(tmp_path: Path) -> None:
    with serving(board(), tmp_path) as address:
        async with AsyncRunClient(address) as conductor:
            assert (await conductor.status()).stage("ppo").state == "running"
            async for got in conductor.watch(Board("", [])):
                assert got.run == "mine"
                break


@asynccontextmanager
async def learner(folder: Path) -> AsyncIterator[tuple[Controls, str]]:
    controls = Controls()
    servicer = LearnerServicer(StatusBoard(STATUS, asyncio.get_running_loop()), controls)
    add = partial(learner_pb2_grpc.add_LearnerServiceServicer_to_server, servicer)
    server = Server(ServerSpec("learner", [Service("lodestar.v1.LearnerService", add)], folder, drain_seconds=0))
    state = await server.start()
    await server.become_ready()
    try:
        yield controls, state.address
    finally:
        await server.stop()


async def test_pause_and_stop_reach_the_learner_of_the_stage_that_serves_one(tmp_path: Path) -> None:
    made = board()
    async with learner(tmp_path / "learner") as (controls, address):
        made.learner = address
        with serving(made, tmp_path) as conductors:
            async with AsyncRunClient(conductors) as conductor:
                assert "the learner holds" in await conductor.pause()
                assert (controls.paused, controls.stopping) == (True, False)
                assert "the learner ends" in await conductor.stop()
                assert controls.stopping
    assert made.ending == ""


class Crew:
    """Makes what each stage makes; before the second it waits for ``go``."""

    def __init__(self, store: Store, go: threading.Event) -> None:
        self.store, self.go, self.worked = store, go, []

    def serve(self, step: Step) -> dict[str, tuple[str, ...]]:
        return {}

    def work(self, step: Step, servers: object) -> None:
        self.worked.append(step.name)
        assert self.go.wait(30)
        for port in step.makes:
            (self.store.unfinished(step) / port).mkdir(parents=True)

    def figures(self, step: Step) -> dict[str, object]:
        return {}

    def release(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(("asked", "said"), [("pause", "paused on request"), ("stop", "stopped on request")])
def test_a_run_between_learners_ends_in_order_and_goes_on_later(tmp_path: Path, asked: str, said: str) -> None:
    run = RunConfig.model_validate({"name": "mine", "runs_dir": str(tmp_path)})
    planned, store, go = plan(run), Store(tmp_path / "mine", run), threading.Event()
    made = Board("mine", [StageRow(step.name) for step in planned.steps])
    crew = Crew(store, go)
    with serving(made, tmp_path) as address, RunClient(address) as conductor:

        def ask() -> None:
            while not crew.worked:
                time.sleep(0.01)
            assert "when the stage in progress is done" in getattr(conductor, asked)()
            go.set()

        asking = threading.Thread(target=ask)
        asking.start()
        with pytest.raises(RunPaused, match=f"{said}, before sft; --resume goes on"):
            conduct(planned, store, crew, made)
        asking.join()
    assert crew.worked == ["data"]
    again = Board("mine", [StageRow(step.name) for step in planned.steps])
    assert conduct(planned, store, crew, again) == [step.name for step in planned.steps[1:]]


def test_a_conductor_that_speaks_tls_listens_to_operators_alone(tmp_path: Path) -> None:
    authority = Authority.create()
    for name, role in (("conductor", "operator"), ("ann", "operator"), ("policy", "worker")):
        authority.issue(tmp_path / name, role, name)
    with serving(board(), tmp_path, tls=tmp_path / "conductor") as address:
        port = address.rpartition(":")[2]
        with RunClient(f"localhost:{port}", tls=tmp_path / "ann") as conductor:
            assert conductor.status().run == "mine"
        with RunClient(f"localhost:{port}", tls=tmp_path / "policy") as conductor, pytest.raises(PermissionDenied):
            conductor.stop()
