"""A policy server of a tiny model with a chat template, and gateways before it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lodestar_services.gateway.__main__ import serve
from lodestar_services.gateway.gateway import Gateway

from lodestar.config import ArchitectureConfig, GatewayTask, TokenizerConfig
from lodestar.data.tokenizer import train_tokenizer
from lodestar.model.loading import new_causal_lm, save_model
from lodestar.rpc.http import listen

TEXTS = ["what color is the sky ?", "the sky is blue", "the grass is green, naïve 🌱", "is it ? it is not red"]
NAME = "tiny"


@dataclass(frozen=True)
class Door:
    """Where a gateway listens."""

    url: str
    task: GatewayTask


StartGateway = Callable[..., AbstractContextManager[Door]]


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are bytes and pieces of words, so that a character may be two of them."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), TEXTS, context_tokens=128)
    shape = ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, context_tokens=128)
    policy = new_causal_lm(shape, tokenizer, seed=1)
    for parameter in policy.parameters():
        parameter.data *= 4
    save_model(policy, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def policy_service(start_service: Any, tiny_chat: Path) -> Any:
    return start_service("policy", model=str(tiny_chat))


@pytest.fixture(scope="session")
def start_gateway(tmp_path_factory: pytest.TempPathFactory) -> StartGateway:
    """``with start_gateway(address, section={…}, http_tls=…) as door``: the real server on an event loop of its own."""

    @contextmanager
    def start(*addresses: str, section: dict[str, Any] | None = None, **listening: Any) -> Iterator[Door]:
        task = GatewayTask.model_validate(
            {
                "run": "test",
                "folder": tmp_path_factory.mktemp("gateway"),
                "endpoints": {"policy": addresses},
                "section": {"name": NAME, "drain_seconds": 2, **(section or {})},
                "listening": listening,
            }
        )
        bound = listen("127.0.0.1", 0, "--http-port")
        running, stop = threading.Event(), threading.Event()

        async def live() -> None:
            gateway, stopping = Gateway(task), asyncio.Event()
            await gateway.open()
            serving = asyncio.create_task(serve(gateway, task, bound, stopping))
            running.set()
            await asyncio.to_thread(stop.wait)
            stopping.set()
            await serving

        thread = threading.Thread(target=lambda: asyncio.run(live()), name="gateway")
        thread.start()
        assert running.wait(10)
        try:
            scheme = "https" if listening.get("http_tls") or listening.get("tls") else "http"
            yield Door(f"{scheme}://127.0.0.1:{bound.getsockname()[1]}", task)
        finally:
            stop.set()
            thread.join(20)
            bound.close()
            assert not thread.is_alive()

    return start


@pytest.fixture(scope="session")
def door(start_gateway: StartGateway, policy_service: Any) -> Iterator[Door]:
    with start_gateway(policy_service.address) as door:
        yield door
