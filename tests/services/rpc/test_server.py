"""What every server does: bind, become ready, be looked at, drain."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lodestar.client import AsyncPolicyClient, PolicyClient
from lodestar.errors import ConfigError, LodestarError, ModelError, Unavailable
from lodestar.rpc.batching import ComputeThread
from lodestar.rpc.channel import serving
from lodestar.rpc.server import Server, serve
from lodestar.rpc.spec import ServerSpec
from lodestar.rpc.state import ServiceState

NAME = "lodestar.v1.PolicyService"


async def asked(address: str, name: str = "") -> bool:
    return await asyncio.to_thread(serving, address, name)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_health_and_calls_wait_for_the_model(make_spec: Any) -> None:
    loading = asyncio.Event()
    server = Server(make_spec(warm=loading.wait))
    state = await server.start()
    async with AsyncPolicyClient(state.address) as client:
        assert not await asked(state.address)
        assert not await asked(state.address, NAME)
        with pytest.raises(Unavailable, match="loading its model"):
            await client.tokenize("a")
        await server.become_ready()
        assert await asked(state.address)
        assert await asked(state.address, NAME)
        assert not await asked(state.address, "lodestar.v1.Unknown")
        assert await client.tokenize("a") == (97,)
    await server.stop()
    assert not await asked(state.address)


async def test_the_state_file_tells_pid_and_ports_while_the_server_lives(make_spec: Any, tmp_path: Path) -> None:
    server = Server(make_spec(replica=3))
    state = await server.start()
    file = tmp_path / "services" / "policy-3.json"
    assert ServiceState.read(file) == state
    ports = {"port", "metrics_port", "caller_port", "health_port", "http_port"}
    assert json.loads(file.read_text()).keys() == {"name", "pid", "host", *ports}
    await server.stop()
    assert not file.exists()
    assert not list(file.parent.iterdir())


@pytest.mark.parametrize(("asked_for", "listed"), [(None, True), (False, False)])
async def test_reflection_lists_the_services_on_loopback_unless_told_otherwise(
    make_spec: Any, asked_for: bool | None, listed: bool
) -> None:
    server = Server(make_spec(reflection=asked_for))
    state = await server.start()
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(state.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=5)
        if listed:
            names = {service.name async for reply in call for service in reply.list_services_response.service}
            assert {NAME, "grpc.health.v1.Health"} <= names
        else:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await anext(aiter(call))
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop()


@pytest.mark.parametrize("flag", ["port", "metrics_port"])
async def test_a_taken_port_is_named_with_its_flag(make_spec: Any, flag: str) -> None:
    holder = Server(make_spec())
    port = getattr(await holder.start(), flag)
    second = Server(make_spec(replica=1, **{flag: port}))
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}: cannot listen on 127.0.0.1:{port}"):
        await second.start()
    await second.stop()
    await holder.stop()


async def test_an_address_that_others_reach_needs_tls_or_insecure(make_spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 is reachable from other machines.*--insecure"):
        await Server(make_spec(host="0.0.0.0")).start()
    server = Server(make_spec(host="0.0.0.0", insecure=True))
    state = await server.start()
    await server.become_ready()
    assert await asked(f"127.0.0.1:{state.port}")
    await server.stop()


async def test_draining_lets_calls_finish_and_takes_no_new_ones(make_spec: Any, policy: Any) -> None:
    server = Server(make_spec())
    state = await server.start()
    await server.become_ready()
    policy.script = policy.gate.wait
    async with AsyncPolicyClient(state.address) as client, AsyncPolicyClient(state.address) as late:
        in_flight = [asyncio.create_task(client.tokenize(letter)) for letter in "abc"]
        stream = asyncio.create_task(client.generate("x", max_tokens=30))
        await until(lambda: policy.running == 4)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await late.tokenize("d")
        policy.gate.set()
        assert await asyncio.gather(*in_flight) == [(97,), (98,), (99,)]
        assert len((await stream).completions[0].token_ids) == 30
        await stopping


async def test_draining_ends_after_drain_seconds(make_spec: Any, policy: Any) -> None:
    server = Server(make_spec(drain_seconds=0.2))
    state = await server.start()
    await server.become_ready()
    policy.script = policy.gate.wait
    async with AsyncPolicyClient(state.address) as client:
        stuck = asyncio.create_task(client.tokenize("a"))
        await until(lambda: policy.running)
        await server.stop()
        with pytest.raises(Unavailable):
            await stuck
    assert (policy.running, policy.cancelled) == (0, 1)


async def test_health_answers_while_the_model_computes(make_spec: Any, policy: Any) -> None:
    compute, release = ComputeThread("model"), threading.Event()
    policy.script = lambda: compute.run(partial(release.wait, 10))
    server = Server(make_spec())
    state = await server.start()
    await server.become_ready()
    async with AsyncPolicyClient(state.address) as client:
        slow = asyncio.create_task(client.tokenize("a"))
        await until(lambda: policy.running)
        started = time.monotonic()
        assert await asked(state.address)
        assert time.monotonic() - started < 1
        assert not slow.done()
        release.set()
        assert await slow == (97,)
    compute.close()
    await server.stop()


async def test_the_server_ends_with_its_work(make_spec: Any, tmp_path: Path) -> None:
    async def work(stopping: asyncio.Event) -> None:
        assert not stopping.is_set()

    async with asyncio.timeout(10):
        await serve(make_spec(work=work))
    assert not list((tmp_path / "services").iterdir())


async def test_work_that_outstays_sigterm_is_cancelled_and_health_says_no_meanwhile(make_spec: Any) -> None:
    seen: list[bool] = []

    async def work(stopping: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stopping.wait()
        state = ServiceState.read(spec.run_dir / "services" / "policy-0.json")
        await asyncio.sleep(0.05)
        seen.append(await asked(state.address))
        await asyncio.sleep(60)

    spec = make_spec(work=work, drain_seconds=0.5)
    async with asyncio.timeout(10):
        await serve(spec)
    assert seen == [False]


@pytest.mark.parametrize("part", ["warm", "work"])
async def test_what_loading_or_work_raises_ends_the_server(make_spec: Any, tmp_path: Path, part: str) -> None:
    async def fail(*_: object) -> None:
        raise ModelError("sft/policy: no such model folder")

    with pytest.raises(ModelError, match="no such model folder"):
        await serve(make_spec(**{part: fail}))
    assert not list((tmp_path / "services").iterdir())


async def test_a_process_without_calls_of_its_own_has_health_and_metrics(tmp_path: Path) -> None:
    server = Server(ServerSpec("rollout", [], tmp_path))
    state = await server.start()
    await server.become_ready()
    assert await asked(state.address)
    url = f"http://127.0.0.1:{state.metrics_port}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    assert "lodestar_ready 1.0" in page
    await server.stop()


def test_calls_are_counted_by_method_and_code(server_thread: Any, make_spec: Any, policy: Any) -> None:
    def count(state: ServiceState, code: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{state.metrics_port}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        name = f'lodestar_rpcs_total{{code="{code}",method="lodestar.v1.PolicyService/Tokenize"}}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def refuse() -> None:
        raise ModelError("no")

    with server_thread(make_spec()) as state, PolicyClient(state.address) as client:
        before = {code: count(state, code) for code in ("OK", "FAILED_PRECONDITION")}
        client.tokenize("a")
        client.tokenize("a")
        policy.script = refuse
        with pytest.raises(ModelError):
            client.tokenize("a")
        while count(state, "FAILED_PRECONDITION") == before["FAILED_PRECONDITION"]:
            time.sleep(0.01)  # an error is counted just after it left
        assert {code: count(state, code) - old for code, old in before.items()} == {"OK": 2, "FAILED_PRECONDITION": 1}


def test_a_defect_is_logged_and_its_caller_learns_nothing_of_the_inside(
    server_thread: Any, make_spec: Any, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def defect() -> None:
        raise ZeroDivisionError("secret path /etc/x")

    policy.script = defect
    with (
        server_thread(make_spec()) as state,
        PolicyClient(state.address) as client,
        pytest.raises(LodestarError) as error,
    ):
        client.tokenize("a")
    assert type(error.value) is LodestarError
    assert str(error.value) == "internal error; the server's log says more"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "secret path" in str(record.exc_info)
