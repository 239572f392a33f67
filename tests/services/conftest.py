"""Servers over real sockets: in a thread where a process is not the point, in a process of the fork server else."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lodestar.config import ArchitectureConfig, RunConfig, ServeOptions, TokenizerConfig
from lodestar.data.tokenizer import train_tokenizer
from lodestar.layout import RunFolder
from lodestar.local.processes import Child, Processes
from lodestar.model.loading import new_causal_lm, save_model, scalar_from_causal_lm
from lodestar.rpc.channel import serving
from lodestar.rpc.server import Server, ServerSpec
from lodestar.rpc.state import ServiceState

CONTEXT_TOKENS = 64
TEXTS = ["what color is the sky ?", "the sky is blue", "the grass is green", "is it ? it is not red"]


@dataclass(frozen=True)
class TinyModels:
    """Folders of a start model and of a reward model with one tokenizer."""

    sft: Path
    reward: Path


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Random weights, 22,000 of them, large enough that log-probs are not all alike."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TokenizerConfig(kind="word"), TEXTS, context_tokens=CONTEXT_TOKENS)
    shape = ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, context_tokens=64)
    policy = new_causal_lm(shape, tokenizer, seed=1)
    for parameter in policy.parameters():
        parameter.data *= 4
    reward = scalar_from_causal_lm(policy, tokenizer, seed=2)
    reward.score.bias.data.fill_(0.25)
    save_model(policy, tokenizer, root / "sft")
    save_model(reward, tokenizer, root / "reward")
    return TinyModels(root / "sft", root / "reward")


@contextmanager
def serve_in_thread(spec: ServerSpec) -> Iterator[ServiceState]:
    """A ready server on an event loop of its own; leaving drains it."""
    started: list[ServiceState] = []
    ready, leaving = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    async def live() -> None:
        server = Server(spec)
        try:
            started.append(await server.start())
            await spec.warm()
            await server.become_ready()
            ready.set()
            await asyncio.to_thread(leaving.wait)
        finally:
            await server.stop()

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name=f"server-{spec.name}")
    thread.start()
    ready.wait(30)
    try:
        if not failure:
            yield started[0]
    finally:
        leaving.set()
        thread.join(30)
        assert not thread.is_alive()
    if failure:
        raise failure[0]


@pytest.fixture
def server_thread() -> Callable[[ServerSpec], AbstractContextManager[ServiceState]]:
    """serve_in_thread, for test modules (which cannot import conftest.py)."""
    return serve_in_thread


@dataclass(frozen=True)
class RunningService:
    """A service process that is SERVING."""

    child: Child
    state: ServiceState
    options: ServeOptions

    @property
    def address(self) -> str:
        """gRPC target."""
        return self.state.address


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The launcher's own fork server: imports once, forks in milliseconds, leaves nothing behind."""
    with Processes(tmp_path_factory.mktemp("logs")) as running:
        yield running


StartService = Callable[..., RunningService]


@pytest.fixture(scope="session")
def start_service(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> StartService:
    """``start_service("reward", model=…, config={…}, wait=True)`` → RunningService."""

    def start(role: str, *, config: dict[str, Any] | None = None, wait: bool = True, **options: Any) -> Any:
        run_dir = tmp_path_factory.mktemp(role)
        serve = ServeOptions(config=RunConfig(name="test", **(config or {})), run_dir=run_dir, **options)
        argument = {"role": role, "options": serve.model_dump(mode="json")}
        child = processes.start(run_dir.name, "lodestar.local.jobs:serve", argument)
        if not wait:
            return child
        return RunningService(child, wait_serving(child, RunFolder(run_dir).services / f"{role}-0.json"), serve)

    return start


def wait_serving(child: Child, state_file: Path, timeout: float = 30.0) -> ServiceState:
    """The state of a child that says SERVING."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert child.alive, child.tail(30)
        if state_file.exists():
            state = ServiceState(**json.loads(state_file.read_text()))
            if serving(state.address):
                return state
        time.sleep(0.02)
    raise AssertionError(f"not serving after {timeout} s: {child.tail(30)}")


@pytest.fixture(scope="session")
def reward_service(start_service: StartService, tiny_models: TinyModels) -> RunningService:
    """A reward server that tests share."""
    return start_service("reward", model=str(tiny_models.reward))


@pytest.fixture(scope="session")
def reference_service(start_service: StartService, tiny_models: TinyModels) -> RunningService:
    """A reference server that tests share."""
    return start_service("reference", model=str(tiny_models.sft))
