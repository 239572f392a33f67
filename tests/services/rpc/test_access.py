"""Who is let in: certificates and tokens over real sockets, with the status and the sentence of each refusal."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from lodestar.client import AsyncPolicyClient, PolicyClient, PolicyControlClient
from lodestar.errors import ConfigError, LodestarError, PermissionDenied, Unauthenticated, Unavailable
from lodestar.rpc.access import Role, add_token
from lodestar.rpc.certificates import Authority
from lodestar.rpc.channel import serving
from lodestar.rpc.server import Server
from lodestar.rpc.tls import TlsFolder
from lodestar.v1 import policy_pb2, policy_pb2_grpc

TOKENIZE = policy_pb2.TokenizeRequest(text="hi")


def callers(state: Any) -> str:
    return f"127.0.0.1:{state.caller_port}"


def raw_call(
    address: str, credentials: grpc.ChannelCredentials | None, metadata: tuple[tuple[str, str], ...] = ()
) -> grpc.StatusCode:
    """What a client that is not ours hears."""
    channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    with channel:
        try:
            policy_pb2_grpc.PolicyServiceStub(channel).Tokenize(TOKENIZE, timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("name", ["rollout", "caller", "operator"])
def test_a_certificate_of_the_fleet_is_let_in(guarded, fleet, name):
    with PolicyClient(guarded.address, tls=fleet.root / name) as client:
        assert client.tokenize("hi") == (104, 105)


@pytest.mark.parametrize("role", ["caller", "operator"])
def test_a_token_is_let_in_at_the_callers_port(guarded, fleet, role):
    with PolicyClient(callers(guarded), tls=fleet.root / "outside", token=fleet.tokens[role]) as client:
        assert client.tokenize("hi") == (104, 105)
        assert len(client.generate("hi", max_tokens=3).completions[0].token_ids) == 3


async def test_the_asyncio_client_takes_the_same(guarded, fleet):
    outside = fleet.root / "outside"
    async with AsyncPolicyClient(callers(guarded), tls=outside, token=fleet.tokens["caller"]) as client:
        assert await client.tokenize("hi") == (104, 105)
    async with AsyncPolicyClient(guarded.address, tls=fleet.root / "rollout") as client:
        assert [chunk.text async for chunk in client.stream("hi", max_tokens=2)] == ["0.0 ", "0.1 "]


def test_several_addresses_are_verified_by_the_first_ones_name(guarded, fleet):
    with PolicyClient([guarded.address, guarded.address], tls=fleet.root / "rollout") as client:
        assert client.tokenize("hi") == (104, 105)


def test_a_server_of_another_authority_is_not_trusted(guarded, fleet):
    elsewhere = fleet.folder("elsewhere", authority=Authority.create())
    with (
        PolicyClient(guarded.address, tls=elsewhere) as client,
        pytest.raises(Unauthenticated, match=r"not signed by the authority in our ca\.crt"),
    ):
        client.tokenize("hi")


def test_a_certificate_of_another_authority_is_refused(guarded, fleet):
    foreign = fleet.folder("foreign", authority=Authority.create())
    shutil.copy(fleet.root / "rollout" / "ca.crt", foreign / "ca.crt")
    with pytest.raises(ConfigError, match=r"foreign/tls\.crt: is not signed by the authority in ca\.crt"):
        PolicyClient(guarded.address, tls=foreign)
    ca, key, chain = ((foreign / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    assert raw_call(guarded.address, grpc.ssl_channel_credentials(ca, key, chain)) is grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_is_refused(guarded, fleet):
    expired = fleet.folder("expired", days=-1)
    with pytest.raises(ConfigError, match=r"expired/tls\.crt: expired at 20"):
        PolicyClient(guarded.address, tls=expired)
    ca, key, chain = ((expired / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    assert raw_call(guarded.address, grpc.ssl_channel_credentials(ca, key, chain)) is grpc.StatusCode.UNAVAILABLE


def test_no_certificate_is_refused_at_the_fleets_port(guarded, fleet):
    with PolicyClient(guarded.address, tls=fleet.root / "outside") as client, pytest.raises(Unavailable):
        client.tokenize("hi")


def test_an_expired_server_is_not_trusted(fleet, make_spec, server_thread, monkeypatch):
    monkeypatch.setattr("lodestar.rpc.tls.check_pair", lambda *_: 0.0)  # it would refuse to start
    expired = fleet.folder("expired", days=-1)
    with (
        server_thread(make_spec(tls=expired)) as state,
        PolicyClient(state.address, tls=fleet.root / "outside") as client,
        pytest.raises(Unauthenticated, match="the server's certificate has expired: renew it there"),
    ):
        client.tokenize("hi")


def test_a_server_of_another_name_is_not_trusted(fleet, make_spec, server_thread):
    fleet.authority.issue(fleet.root / "stranger", "worker", "stranger", hosts=["stranger"])
    with (
        server_thread(make_spec(tls=fleet.root / "stranger")) as state,
        PolicyClient(state.address, tls=fleet.root / "rollout") as client,
        pytest.raises(Unauthenticated, match="does not name the address that was called"),
    ):
        client.tokenize("hi")


def test_a_missing_token_is_refused(guarded, fleet):
    with (
        PolicyClient(callers(guarded), tls=fleet.root / "outside") as client,
        pytest.raises(Unauthenticated, match="no token was sent"),
    ):
        client.tokenize("hi")


@pytest.mark.parametrize("value", ["wrong", "", "two words"])
def test_a_wrong_token_is_refused(guarded, fleet, value):
    credentials = grpc.ssl_channel_credentials(fleet.authority.pem)
    header = (("authorization", f"Bearer {value}"),)
    assert raw_call(callers(guarded), credentials, header) is grpc.StatusCode.UNAUTHENTICATED


def test_an_unknown_token_is_refused_with_what_to_do(guarded, fleet):
    with (
        PolicyClient(callers(guarded), tls=fleet.root / "outside", token="wrong") as client,
        pytest.raises(Unauthenticated, match="not known here; ask the operator"),
    ):
        list(client.stream("hi", max_tokens=2))


def test_a_token_in_plaintext_is_refused(make_spec, server_thread, fleet):
    with server_thread(make_spec(tokens=fleet.tokens_file)) as state:
        header = (("authorization", f"Bearer {fleet.tokens['caller']}"),)
        assert raw_call(state.address, None) is grpc.StatusCode.OK
        assert raw_call(state.address, None, header) is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(ConfigError, match="token: would travel in plaintext"):
            PolicyClient(state.address, token=fleet.tokens["caller"])


@pytest.mark.parametrize("role", ["caller", "worker"])
def test_the_right_token_of_the_wrong_role_is_denied(guarded, fleet, role):
    with (
        PolicyControlClient(callers(guarded), tls=fleet.root / "outside", token=fleet.tokens[role]) as control,
        pytest.raises(PermissionDenied, match=rf"the-{role} is a {role}, and .*/Pause is for: operator"),
    ):
        control.pause()


@pytest.mark.parametrize("name", ["caller", "rollout"])
def test_the_right_certificate_of_the_wrong_role_is_denied(guarded, fleet, name):
    with PolicyControlClient(guarded.address, tls=fleet.root / name) as control, pytest.raises(PermissionDenied):
        control.pause()


def test_an_operator_is_let_in_by_certificate_and_by_token(guarded, fleet):
    with PolicyControlClient(guarded.address, tls=fleet.root / "operator") as control:
        control.pause()
    with PolicyControlClient(callers(guarded), tls=fleet.root / "outside", token=fleet.tokens["operator"]) as control:
        control.pause()


@pytest.mark.parametrize("role", ["", "emperor"])
def test_a_certificate_without_a_role_of_ours_is_denied(guarded, fleet, role):
    nameless = fleet.folder("nameless", role)
    with (
        PolicyClient(guarded.address, tls=nameless) as client,
        pytest.raises(PermissionDenied, match="the certificate of 'nameless' names no role of ours"),
    ):
        client.tokenize("hi")


def test_refusals_are_logged_with_the_peer(guarded, fleet, caplog):
    with caplog.at_level(logging.WARNING), PolicyClient(callers(guarded), tls=fleet.root / "outside") as client:
        with pytest.raises(LodestarError):
            client.tokenize("hi")
        assert "refused lodestar.v1.PolicyService/Tokenize from ipv4:127.0.0.1:" in caplog.text


def test_probes_are_answered_without_a_certificate_and_nothing_else_is(guarded):
    address = f"127.0.0.1:{guarded.health_port}"
    assert serving(address, "lodestar.v1.PolicyService")
    assert raw_call(address, None) is grpc.StatusCode.UNIMPLEMENTED


def test_tokens_are_withdrawn_and_added_without_a_restart(guarded, fleet):
    with PolicyClient(callers(guarded), tls=fleet.root / "outside", token=fleet.tokens["caller"]) as client:
        client.tokenize("hi")
        fleet.tokens_file.unlink()
        with pytest.raises(Unauthenticated):
            client.tokenize("hi")
        new = add_token(fleet.tokens_file, "next", Role.CALLER)
        with PolicyClient(callers(guarded), tls=fleet.root / "outside", token=new) as other:
            other.tokenize("hi")


def test_a_broken_line_in_the_tokens_keeps_the_old_ones(guarded, fleet, caplog):
    with PolicyClient(callers(guarded), tls=fleet.root / "outside", token=fleet.tokens["caller"]) as client:
        fleet.tokens_file.write_text(fleet.tokens_file.read_text() + "nonsense\n")
        client.tokenize("hi")
    assert "tokens:4: wants NAME ROLE SHA256" in caplog.text


async def test_a_server_binds_no_reachable_address_without_tls(make_spec, fleet):
    with pytest.raises(ConfigError, match=r"--host: 0\.0\.0\.0 is reachable .* give --tls"):
        await Server(make_spec(host="0.0.0.0")).start()
    with pytest.raises(ConfigError, match=r"--caller-port: .* give --tls and --tokens too"):
        await Server(make_spec(caller_port=0, tokens=fleet.tokens_file)).start()
    for spec in (make_spec(host="0.0.0.0", insecure=True), make_spec(host="0.0.0.0", tls=fleet.root / "policy")):
        server = Server(replace(spec, drain_seconds=0.0))
        await server.start()
        await server.stop()


def test_tls_folders_say_what_is_wrong_with_them(fleet):
    with pytest.raises(ConfigError, match=r"No such file or directory: .*nowhere/ca\.crt"):
        TlsFolder(fleet.root / "nowhere")
    shutil.copy(fleet.root / "caller" / "tls.key", fleet.root / "rollout" / "tls.key")
    with pytest.raises(ConfigError, match=r"rollout/tls\.key: is not the key of tls\.crt"):
        TlsFolder(fleet.root / "rollout")
    (fleet.root / "rollout" / "tls.key").unlink()
    with pytest.raises(ConfigError, match=r"rollout/tls\.key: is missing, and tls\.crt is there"):
        TlsFolder(fleet.root / "rollout")


def lodestar(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from lodestar.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)


def test_the_command_line_makes_certificates_and_tokens_that_work(
    tmp_path: Path, make_spec: Callable[..., Any], server_thread: Callable[..., Any]
) -> None:
    lodestar("certs", "dev", str(tmp_path / "certs"))
    token = lodestar("certs", "token", str(tmp_path / "tokens"), "me").stdout.strip()
    assert token not in (tmp_path / "tokens").read_text()
    assert (tmp_path / "certs" / "policy" / "tls.key").stat().st_mode & 0o077 == 0
    spec = make_spec(tls=tmp_path / "certs" / "policy", tokens=tmp_path / "tokens", caller_port=0)
    with server_thread(spec) as state:
        with PolicyClient(state.address, tls=tmp_path / "certs" / "rollout") as client:
            client.tokenize("hi")
        with PolicyClient(callers(state), tls=tmp_path / "certs" / "caller", token=token) as client:
            client.tokenize("hi")
        before = (tmp_path / "certs" / "ca.crt").read_bytes()
        lodestar("certs", "dev", str(tmp_path / "certs"))
        assert (tmp_path / "certs" / "ca.crt").read_bytes() == before
        with PolicyClient(state.address, tls=tmp_path / "certs" / "rollout") as client:
            client.tokenize("hi")
