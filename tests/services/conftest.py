"""Servers over real sockets: in a thread where a process is not the point, in a process of the fork server else."""

from __future__ import annotations

import asyncio
import json
import os
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lodestar.config import ArchitectureConfig, Task, TokenizerConfig
from lodestar.config.serve import TASK
from lodestar.data.tokenizer import train_tokenizer
from lodestar.local.processes import Child, Processes
from lodestar.model.loading import new_causal_lm, save_model, scalar_from_causal_lm
from lodestar.records import FinishReason, GenerationChunk, ModelInfo, WeightVersion
from lodestar.rpc import convert
from lodestar.rpc.channel import serving
from lodestar.rpc.server import Server
from lodestar.rpc.spec import ServerSpec, Service
from lodestar.rpc.state import ServiceState
from lodestar.v1 import policy_pb2, policy_pb2_grpc

CONTEXT_TOKENS = 64
TEXTS = ["what color is the sky ?", "the sky is blue", "the grass is green", "is it ? it is not red"]


@pytest.fixture(autouse=True, scope="session")
def metrics_exporters_end_at_once() -> Iterator[None]:
    """An HTTP server in a thread looks every half second whether it should end; with 50 of them that adds up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))
        yield


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


MODEL = ModelInfo("scripted", WeightVersion("", 0, "d"), "h")
POLICY_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name


class ScriptedPolicy(policy_pb2_grpc.PolicyServiceServicer):
    """Tokenize does what ``script`` says; Generate streams one token per 10 ms."""

    def __init__(self) -> None:
        self.script: Callable[[], Any] = lambda: None
        self.calls = 0
        self.running = 0
        self.cancelled = 0
        self.gate = asyncio.Event()

    async def Tokenize(self, request: Any, context: Any) -> policy_pb2.TokenizeResponse:
        self.calls += 1
        self.running += 1
        try:
            outcome = self.script()
            if asyncio.iscoroutine(outcome):
                await outcome
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return policy_pb2.TokenizeResponse(token_ids=[ord(letter) for letter in request.text])

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self.running += 1
        try:
            sampling = convert.sampling_from_proto(request.sampling)
            for position in range(sampling.max_tokens):
                for sample in range(sampling.n):
                    yield convert.chunk_to_proto(
                        GenerationChunk(
                            model=MODEL,
                            sample_index=sample,
                            token_ids=(100 * sample + position,),
                            text=f"{sample}.{position} ",
                            prompt_tokens=len(request.text),
                            finish_reason=FinishReason.LENGTH if position == sampling.max_tokens - 1 else None,
                            logprobs=(-float(position),),
                        )
                    )
                await asyncio.sleep(0.01)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


@pytest.fixture
def policy() -> ScriptedPolicy:
    return ScriptedPolicy()


@pytest.fixture
def make_spec(policy: ScriptedPolicy, tmp_path: Path) -> Callable[..., ServerSpec]:
    """``make_spec(warm=…, drain_seconds=…)`` serves the scripted policy."""

    def make(servicer: ScriptedPolicy = policy, **options: Any) -> ServerSpec:
        service = Service(POLICY_SERVICE, partial(policy_pb2_grpc.add_PolicyServiceServicer_to_server, servicer))
        return ServerSpec("policy", [service], tmp_path, **{"drain_seconds": 5.0, **options})

    return make


@dataclass(frozen=True)
class RunningService:
    """A service process that is SERVING."""

    child: Child
    state: ServiceState
    task: Task

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
    """``start_service("reward", model=…, section={…}, wait=True)`` → RunningService."""

    def start(
        role: str,
        *,
        section: dict[str, Any] | None = None,
        port: int = 0,
        replica: int = 0,
        wait: bool = True,
        **told: Any,
    ) -> Any:
        folder = tmp_path_factory.mktemp(role)
        listening = {"port": port, "replica": replica}
        tree = {"role": role, "run": "test", "folder": folder, "section": section or {}, "listening": listening, **told}
        task = TASK.validate_python(tree)
        child = processes.start(folder.name, "lodestar.crew.work:serve", {"task": task.model_dump(mode="json")})
        if not wait:
            return child
        return RunningService(child, wait_serving(child, folder / "services" / f"{role}-{replica}.json"), task)

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
    gold = {"name": "gold", "kind": "gold", "watched": True}
    return start_service("reward", model=str(tiny_models.reward), section={"sources": [{"name": "reward"}, gold]})


@pytest.fixture(scope="session")
def reference_service(start_service: StartService, tiny_models: TinyModels) -> RunningService:
    """A reference server that tests share."""
    return start_service("reference", model=str(tiny_models.sft))
