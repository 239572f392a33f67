"""What every call does: errors keep their class, deadlines and cancellation reach the server, retries, sharing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lodestar import errors
from lodestar.client import AsyncPolicyClient, PolicyClient
from lodestar.errors import DeadlineExceeded, InvalidArgument, LodestarError, ResourceExhausted, Unavailable
from lodestar.v1 import policy_pb2, policy_pb2_grpc

EXAMPLES: list[LodestarError] = [
    LodestarError("something of ours broke"),
    InvalidArgument("sampling.top_p", "must be in (0, 1], got 2"),
    errors.ModelError("no safetensors"),
    errors.FailedPrecondition("paused"),
    errors.TokenizerMismatch("a" * 64, "b" * 64),
    errors.ResourceExhausted("full"),
    errors.VersionUnavailable("step 3 is served"),
    errors.QueueUnavailable("Redis is away"),
    errors.RunPaused("too many failed"),
    errors.NonFinite("score is nan"),
]


@pytest.fixture
def address(server_thread: Any, make_spec: Any) -> Any:
    with server_thread(make_spec()) as state:
        yield state.address


def raiser(error: Exception) -> Any:
    def script() -> None:
        raise error

    return script


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_reaches_the_caller_as_it_was_raised(address: str, policy: Any, error: LodestarError) -> None:
    policy.script = raiser(error)
    with PolicyClient(address) as client, pytest.raises(LodestarError) as caught:
        client.tokenize("a")
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "field", None) == getattr(error, "field", None)


def test_any_language_finds_the_field_in_google_rpc_details(address: str, policy: Any) -> None:
    policy.script = raiser(InvalidArgument("sampling.top_p", "must be in (0, 1], got 2"))
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        policy_pb2_grpc.PolicyServiceStub(channel).Tokenize(policy_pb2.TokenizeRequest(), timeout=5)
    status = rpc_status.from_call(caught.value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason) == ("lodestar", "INVALID_ARGUMENT")
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("sampling.top_p", "must be in (0, 1], got 2")


def test_a_passed_deadline_is_told_and_stops_the_server_too(address: str, policy: Any) -> None:
    policy.script = lambda: asyncio.sleep(30)
    with PolicyClient(address, timeout=0.2) as client, pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        client.tokenize("a")
    wait_for(lambda: (policy.running, policy.cancelled) == (0, 1))


async def test_cancelling_a_call_cancels_it_on_the_server(address: str, policy: Any) -> None:
    policy.script = lambda: asyncio.sleep(30)
    async with AsyncPolicyClient(address) as client:
        call = asyncio.create_task(client.tokenize("a"))
        await asyncio.to_thread(wait_for, lambda: policy.running)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(wait_for, lambda: (policy.running, policy.cancelled) == (0, 1))


def test_unavailable_is_tried_again_and_nothing_else_is(address: str, policy: Any) -> None:
    def twice_away() -> None:
        if policy.calls <= 2:
            raise Unavailable("not yet")

    policy.script = twice_away
    with PolicyClient(address) as client:
        assert client.tokenize("a") == (97,)
        assert policy.calls == 3
        policy.script = raiser(ResourceExhausted("full"))
        with pytest.raises(ResourceExhausted):
            client.tokenize("a")
        assert policy.calls == 4
        policy.script = raiser(Unavailable("for good"))
        with pytest.raises(Unavailable, match="for good"):
            client.tokenize("a")
        assert policy.calls == 8


def test_a_message_beyond_the_bound_is_refused(server_thread: Any, make_spec: Any, policy: Any) -> None:
    with server_thread(make_spec(max_message_bytes=2**16)) as state, PolicyClient(state.address) as client:
        assert len(client.tokenize("a" * 10_000)) == 10_000
        with pytest.raises(ResourceExhausted, match="larger than max"):
            client.tokenize("a" * 100_000)
    assert policy.calls == 1


def test_calls_are_shared_by_the_addresses_and_move_when_one_goes(
    server_thread: Any, make_spec: Any, policy: Any
) -> None:
    other = type(policy)()
    with server_thread(make_spec()) as first:
        with server_thread(make_spec(other, replica=1)) as second:
            client = PolicyClient([first.address, second.address])
            wait_for(lambda: client.tokenize("a") and policy.calls and other.calls)
            before = policy.calls, other.calls
            for _ in range(20):
                client.tokenize("a")
            assert (policy.calls - before[0], other.calls - before[1]) == (10, 10)
        with client:
            for _ in range(5):
                assert client.tokenize("a") == (97,)


def test_a_restarted_server_is_found_again(server_thread: Any, make_spec: Any) -> None:
    with server_thread(make_spec()) as state:
        client = PolicyClient(state.address)
        assert client.tokenize("a") == (97,)
    with pytest.raises(Unavailable):
        client.tokenize("a")
    with server_thread(make_spec(port=state.port)), client:
        wait_for(lambda: not _is_unavailable(client))


def _is_unavailable(client: PolicyClient) -> bool:
    try:
        client.tokenize("a")
    except Unavailable:
        return True
    return False
