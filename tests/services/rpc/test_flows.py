"""Whose a call is, over real connections, and how many are answered at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from lodestar.client import PolicyClient
from lodestar.errors import ResourceExhausted
from lodestar.fair import Flow
from lodestar.rpc import flows, interceptors
from lodestar.rpc.flows import FOR_TRAINING


def seen_by(policy: Any) -> list[Flow]:
    """What the server's handler reads."""
    seen: list[Flow] = []
    policy.script = lambda: seen.append(flows.present())
    return seen


def test_in_plaintext_training_says_so_and_every_other_connection_is_a_caller(
    server_thread: Any, make_spec: Any, policy: Any
) -> None:
    seen = seen_by(policy)
    with server_thread(make_spec()) as state:
        for metadata in (FOR_TRAINING, ()):
            with PolicyClient(state.address, metadata=metadata) as client:
                client.tokenize("a")
                client.tokenize("b")
    assert seen[:2] == [Flow(training=True)] * 2
    assert seen[2] == seen[3]
    assert seen[2].caller.startswith("ipv4:127.0.0.1:")
    assert not seen[2].training


def test_over_tls_certificates_and_tokens_tell_whatever_is_said(guarded: Any, fleet: Any, policy: Any) -> None:
    seen = seen_by(policy)
    for folder in ("rollout", "caller"):
        with PolicyClient(guarded.address, tls=fleet.root / folder, metadata=FOR_TRAINING) as client:
            client.tokenize("a")
    told: dict[str, Any] = {"tls": fleet.root / "outside", "token": fleet.tokens["caller"]}
    with PolicyClient(f"127.0.0.1:{guarded.caller_port}", metadata=FOR_TRAINING, **told) as client:
        client.tokenize("a")
    assert seen == [Flow(training=True), Flow(caller="caller"), Flow(caller="the-caller")]


def test_so_many_calls_are_answered_at_once_of_each_side_and_no_more(
    server_thread: Any, make_spec: Any, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "MAX_CALLS", 1)
    policy.script = lambda: asyncio.sleep(30)
    with server_thread(make_spec()) as state, PolicyClient(state.address, timeout=20) as first:
        held = first._connection._present.stub.Tokenize.future(first_request(), timeout=20)
        until = time.monotonic() + 10
        while not policy.running:
            assert time.monotonic() < until
            time.sleep(0.005)
        with pytest.raises(ResourceExhausted, match="1 calls are being answered"):
            first.tokenize("b")
        policy.script = lambda: None
        with PolicyClient(state.address, metadata=FOR_TRAINING) as training:
            training.tokenize("c")
        held.cancel()
        until = time.monotonic() + 10
        while policy.running:
            assert time.monotonic() < until
            time.sleep(0.005)
        first.tokenize("d")


def first_request() -> Any:
    from lodestar.v1 import policy_pb2

    return policy_pb2.TokenizeRequest(text="a")
