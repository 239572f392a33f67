"""Who is let in, with how much, for how long; and what a caller is told while nobody can answer."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from lodestar_services.gateway.__main__ import check_exposure
from prometheus_client import REGISTRY

import lodestar.rpc.http as http_server
from lodestar.client import PolicyControlClient
from lodestar.config import GatewayTask
from lodestar.errors import ConfigError
from lodestar.local.ports import free_ports
from lodestar.rpc.access import Role, add_token
from lodestar.rpc.certificates import Authority

BODY = {"model": "tiny", "prompt": "the sky is", "max_tokens": 4}


def sdk_of(door: Any, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{door.url}/v1", "api_key": "none", "max_retries": 0, **options})


def post(door: Any, data: bytes, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(urlsplit(door.url).netloc, timeout=20)
    try:
        connection.request("POST", path, data, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def counted(route: str, status: str) -> float:
    return REGISTRY.get_sample_value("lodestar_gateway_requests_total", {"route": route, "status": status}) or 0.0


def wait_until_empty(address: str) -> None:
    with PolicyControlClient(address) as control:
        deadline = time.monotonic() + 20
        while (status := control.status()).running_sequences or status.waiting_sequences:
            assert time.monotonic() < deadline, status
            time.sleep(0.02)


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, dict[Role, str]]:
    path = tmp_path / "tokens"
    return path, {role: add_token(path, f"some-{role}", role) for role in Role}


def test_a_token_is_asked_for_where_there_are_tokens(
    start_gateway: Any, policy_service: Any, tokens: tuple[Path, dict[Role, str]]
) -> None:
    path, held = tokens
    with start_gateway(policy_service.address, tokens=path) as door:
        with sdk_of(door, api_key=held[Role.CALLER]) as client:
            assert client.completions.create(**BODY).choices
            assert list(client.models.list())
        with sdk_of(door, api_key="guessed") as client:
            with pytest.raises(openai.AuthenticationError, match="not known here") as refused:
                client.completions.create(**BODY)
            assert refused.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        status, said = post(door, json.dumps(BODY).encode())
        assert (status, said["error"]["code"]) == (401, "invalid_api_key")
        path.write_text("")
        with sdk_of(door, api_key=held[Role.CALLER]) as client, pytest.raises(openai.AuthenticationError):
            client.completions.create(**BODY)


def serial_at(door: Any, authority: Path) -> int:
    place = urlsplit(door.url)
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection((place.hostname, place.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        return int(str(connection.getpeercert()["serialNumber"]), 16)


def test_the_api_speaks_tls_and_takes_a_renewed_certificate(
    start_gateway: Any, policy_service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "RENEW_SECONDS", 0.05)
    issuer, folder = Authority.create(), tmp_path / "certs"
    issuer.issue(folder, "worker", "gateway")
    trusting = httpx2.Client(verify=ssl.create_default_context(cafile=str(folder / "ca.crt")))
    with start_gateway(policy_service.address, http_tls=folder) as door:
        with sdk_of(door, http_client=trusting) as client:
            assert client.completions.create(**BODY).choices
        with sdk_of(door) as client, pytest.raises(openai.APIConnectionError):
            client.completions.create(**BODY)
        first = serial_at(door, folder / "ca.crt")
        issuer.issue(folder, "worker", "gateway")
        deadline = time.monotonic() + 10
        while serial_at(door, folder / "ca.crt") == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("listening", "missing"),
    [({}, "--tls"), ({"tls": "certs"}, "--tokens"), ({"http_tls": "certs"}, "--tokens"), ({"tokens": "t"}, "--tls")],
)
def test_other_machines_are_not_let_in_without_tls_and_tokens(listening: dict[str, str], missing: str) -> None:
    def task(**more: Any) -> GatewayTask:
        reached = {"host": "0.0.0.0", **listening, **more}
        return GatewayTask.model_validate(
            {"run": "x", "folder": ".", "endpoints": {"policy": ["a:1"]}, "listening": reached}
        )

    with pytest.raises(ConfigError) as refused:
        check_exposure(task())
    assert refused.value.field == missing
    check_exposure(task(insecure=True))
    check_exposure(task(host="127.0.0.1"))


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 50_000, 400, "not JSON"),
        (b"[1]", 400, "a JSON object"),
        (b'{"model": "tiny"}', 400, "prompt: is missing"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, "temperature"),
        (b'{"model": "tiny", "prompt": "' + b"x" * 70_000 + b'"}', 413, "at most 65536"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(small_door: Any, data: bytes, status: int, message: str) -> None:
    told, said = post(small_door, data)
    assert told == status
    assert message in said["error"]["message"]


@pytest.fixture(scope="module")
def small_door(start_gateway: Any, policy_service: Any) -> Iterator[Any]:
    with start_gateway(policy_service.address, section={"max_body_bytes": 65_536, "max_requests": 1}) as door:
        yield door


def test_a_body_sent_in_chunks_is_bounded_too(small_door: Any) -> None:
    place = urlsplit(small_door.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"10001\r\n" + b"x" * 0x10001 + b"\r\n")
        assert b" 413 " in connection.recv(1000)


def test_a_caller_that_leaves_frees_its_sequences(small_door: Any, policy_service: Any) -> None:
    before = counted("completions", "499")
    with sdk_of(small_door) as client:
        stream = client.completions.create(
            **{**BODY, "max_tokens": 120, "n": 16, "stream": True}, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        with sdk_of(small_door) as second, pytest.raises(openai.RateLimitError, match="at most 1 may be"):
            second.completions.create(**BODY)
        stream.close()
    wait_until_empty(policy_service.address)
    deadline = time.monotonic() + 10
    while counted("completions", "499") == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with sdk_of(small_door) as client:
        assert client.completions.create(**BODY).choices, "its place is free again"


def test_a_caller_that_leaves_before_the_answer_frees_its_sequences(small_door: Any, policy_service: Any) -> None:
    with sdk_of(small_door, timeout=0.05) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(**{**BODY, "max_tokens": 120, "n": 64}, extra_body={"ignore_eos": True})
    wait_until_empty(policy_service.address)


def test_a_passed_deadline_is_told_and_frees_the_sequences(start_gateway: Any, policy_service: Any) -> None:
    with start_gateway(policy_service.address, section={"deadline_seconds": 0.3}) as door:
        with PolicyControlClient(policy_service.address) as control:
            control.pause()
            try:
                with sdk_of(door) as client, pytest.raises(openai.APIStatusError, match=r"within 0\.3 s") as late:
                    client.completions.create(**BODY)
            finally:
                control.resume()
        assert late.value.status_code == 504
    wait_until_empty(policy_service.address)


def test_without_a_policy_server_callers_are_told_to_come_again(start_gateway: Any) -> None:
    (port,) = free_ports(1)
    with start_gateway(f"127.0.0.1:{port}") as door, sdk_of(door) as client:
        with pytest.raises(openai.InternalServerError, match="no policy server answers now") as away:
            client.completions.create(**BODY)
        assert away.value.status_code == 503
        assert away.value.response.headers["retry-after"] == "1"


def test_health_is_the_process_alone_and_asks_for_no_token(
    start_gateway: Any, tokens: tuple[Path, dict[Role, str]]
) -> None:
    with start_gateway("127.0.0.1:1", tokens=tokens[0]) as door:
        connection = http.client.HTTPConnection(urlsplit(door.url).netloc, timeout=20)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


def test_requests_and_tokens_are_counted(door: Any) -> None:
    def tokens(kind: str) -> float:
        return REGISTRY.get_sample_value("lodestar_gateway_tokens_total", {"kind": kind}) or 0.0

    before = counted("completions", "200"), counted("completions", "400"), tokens("completion")
    with sdk_of(door) as client:
        client.completions.create(**BODY, extra_body={"ignore_eos": True})
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**{**BODY, "top_p": 7})
    after = counted("completions", "200"), counted("completions", "400"), tokens("completion")
    assert after == (before[0] + 1, before[1] + 1, before[2] + 4)
