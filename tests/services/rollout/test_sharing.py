"""Items of several tickets in one call: who goes together, and whose error is whose."""

import asyncio
from collections.abc import Sequence

import pytest
from lodestar_services.rollout.sharing import CALLS, SharedCalls

from lodestar.errors import InvalidArgument, LodestarError


class Server:
    """Answers an item with its double once the gate is open; refuses calls that hold a negative one."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(items))
        await self.gate.wait()
        if min(items) < 0:
            raise InvalidArgument("items", "negative")
        return [2 * item for item in items]


async def test_an_idle_server_gets_each_at_once_and_a_busy_one_what_has_gathered() -> None:
    server = Server()
    shared = SharedCalls(server, tokens_of=lambda _: 1, call_tokens=100)
    tasks = [asyncio.create_task(shared.submit([i, i + 100])) for i in range(CALLS + 3)]
    await asyncio.sleep(0.01)
    assert server.calls == [[i, i + 100] for i in range(CALLS)]
    server.gate.set()
    assert await asyncio.gather(*tasks) == [[2 * i, 2 * i + 200] for i in range(CALLS + 3)]
    assert server.calls[CALLS:] == [[item for i in range(CALLS, CALLS + 3) for item in (i, i + 100)]]


async def test_a_call_holds_no_more_tokens_than_it_may_but_a_large_submission_whole() -> None:
    server = Server()
    shared = SharedCalls(server, tokens_of=lambda item: item, call_tokens=10)
    tasks = [asyncio.create_task(shared.submit([size])) for size in [*[1] * CALLS, 4, 6, 1, 50, 2]]
    await asyncio.sleep(0.01)
    server.gate.set()
    await asyncio.gather(*tasks)
    assert server.calls[CALLS:] == [[4, 6], [1], [50], [2]]


async def test_an_error_reaches_only_the_one_whose_items_cause_it() -> None:
    server = Server()
    shared = SharedCalls(server, tokens_of=lambda _: 1, call_tokens=100)
    tasks = [asyncio.create_task(shared.submit([item])) for item in [*[1] * CALLS, 2, -3, 4]]
    await asyncio.sleep(0.01)
    server.gate.set()
    *good, two, bad, four = await asyncio.gather(*tasks, return_exceptions=True)
    assert (good, two, four) == ([[2]] * CALLS, [4], [8])
    assert isinstance(bad, InvalidArgument)


async def test_who_gave_up_is_left_out_and_the_others_go_on() -> None:
    server = Server()
    shared = SharedCalls(server, tokens_of=lambda _: 1, call_tokens=100)
    tasks = [asyncio.create_task(shared.submit([item])) for item in [*range(CALLS), 7, 8]]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    tasks[-2].cancel()
    await asyncio.sleep(0)
    server.gate.set()
    assert await tasks[-1] == [16]
    assert server.calls[CALLS:] == [[8]]


async def test_a_reply_of_another_length_is_an_error() -> None:
    async def short(items: Sequence[int]) -> Sequence[int]:
        return items[1:]

    with pytest.raises(LodestarError, match="1 results came for 2 items"):
        await SharedCalls(short, tokens_of=lambda _: 1, call_tokens=100).submit([1, 2])
