"""The policy client, blocking and asynchronous, against a server that streams what it is told to."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lodestar import client as client_package
from lodestar.client import AsyncPolicyClient, PolicyClient, calls
from lodestar.errors import DeadlineExceeded, InvalidArgument, LodestarError
from lodestar.records import ChatMessage, FinishReason, SamplingParams


@pytest.fixture
def address(server_thread: Any, make_spec: Any) -> Iterator[str]:
    with server_thread(make_spec()) as state:
        yield state.address


def wait_until_idle(policy: Any) -> None:
    deadline = time.monotonic() + 5
    while policy.running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_option_that_sampling_lacks_is_refused(address: str) -> None:
    with PolicyClient(address) as client, pytest.raises(InvalidArgument, match=r"sampling\.temperatur: is no option"):
        client.generate("abc", max_tokens=3, temperatur=0.5)


@pytest.mark.parametrize("name", ["Policy", "PolicyControl", "Reward", "Reference", "Learner", "Weights"])
def test_both_kinds_of_client_have_the_same_methods(name: str) -> None:
    blocking, other = getattr(client_package, f"{name}Client"), getattr(client_package, f"Async{name}Client")
    names = {method for method in dir(blocking) if not method.startswith("_")}
    assert names == {method for method in dir(other) if not method.startswith("_")}
    for method in names - {"close"}:
        ours, theirs = getattr(blocking, method), getattr(other, method)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__ != None  # noqa: E711
        assert next(iter(inspect.signature(ours).parameters)) == "self"


def test_three_lines_suffice(address: str) -> None:
    text = PolicyClient(address).generate("what color is the sky ?", max_tokens=3).completions[0].text
    assert text == "0.0 0.1 0.2 "


def test_interleaved_samples_are_put_together(address: str) -> None:
    with PolicyClient(address) as client:
        generation = client.generate("abc", SamplingParams(max_tokens=2, n=3))
    assert generation.model.name == "scripted"
    assert generation.prompt_tokens == 3
    assert [completion.token_ids for completion in generation.completions] == [(0, 1), (100, 101), (200, 201)]
    assert [completion.text for completion in generation.completions] == ["0.0 0.1 ", "1.0 1.1 ", "2.0 2.1 "]
    assert {completion.finish_reason for completion in generation.completions} == {FinishReason.LENGTH}
    assert {completion.logprobs for completion in generation.completions} == {(0.0, -1.0)}


def test_a_stream_brings_chunks_as_they_come_and_closing_it_cancels(address: str, policy: Any) -> None:
    with PolicyClient(address) as client:
        stream = client.stream("abc", max_tokens=10_000)
        assert [next(stream).token_ids for _ in range(3)] == [(0,), (1,), (2,)]
        stream.close()
        wait_until_idle(policy)
    assert policy.cancelled == 1


def test_a_stream_ends_at_its_deadline(address: str, policy: Any) -> None:
    with PolicyClient(address) as client, pytest.raises(DeadlineExceeded):
        client.generate("abc", max_tokens=10_000, timeout=0.2)
    wait_until_idle(policy)


async def test_the_asynchronous_twin_generates_streams_and_cancels(address: str, policy: Any) -> None:
    async with AsyncPolicyClient(address) as client:
        generations = await asyncio.gather(*(client.generate("abc", max_tokens=2, n=2) for _ in range(8)))
        assert {g.completions[1].text for g in generations} == {"1.0 1.1 "}
        stream = client.stream("abc", max_tokens=10_000)
        assert (await anext(stream)).text == "0.0 "
        await stream.aclose()
        await asyncio.to_thread(wait_until_idle, policy)
        assert policy.cancelled == 1
        task = asyncio.create_task(client.generate("abc", max_tokens=10_000))
        while not policy.running:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_idle, policy)
    assert policy.cancelled == 2


def test_a_stream_that_ends_early_is_an_error(address: str) -> None:
    with PolicyClient(address) as client, pytest.raises(LodestarError, match="before every sample was finished"):
        client.generate("abc", max_tokens=0)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "sampling.max_tokens"),
        ({"sampling": SamplingParams(max_tokens=2), "n": 2}, "sampling"),
        ({"max_tokens": -1}, "request"),
        ({"max_tokens": 2, "purpose": "fun"}, "purpose"),
    ],
)
def test_what_cannot_be_sent_is_refused_here(arguments: dict[str, Any], field: str) -> None:
    with PolicyClient("localhost:1") as client, pytest.raises(InvalidArgument) as refusal:
        client.generate("abc", **arguments)
    assert refusal.value.field == field


@pytest.mark.parametrize("prompt", ["text", (5, 6), [ChatMessage("user", "hello")]])
def test_prompts_are_text_tokens_or_chat(prompt: Any) -> None:
    request = calls.generate(prompt, max_tokens=1).request
    kind = request.WhichOneof("prompt")
    assert (kind, str(getattr(request, kind)).split()) in [
        ("text", ["text"]),
        ("tokens", ["ids:", "5", "ids:", "6"]),
        ("chat", ["messages", "{", "role:", '"user"', "content:", '"hello"', "}"]),
    ]
