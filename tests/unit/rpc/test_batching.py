"""Batches by tokens, on a real compute thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from lodestar.errors import LodestarError, NonFinite, ResourceExhausted
from lodestar.fair import Flow
from lodestar.rpc import flows
from lodestar.rpc.batching import ComputeThread, TokenBatcher


class Model:
    """Answers an item of n tokens with n; records its batches, and holds each until released."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self.failure: Exception | None = None

    def compute(self, items: Sequence[int]) -> list[int | LodestarError]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.released.wait(10)
        if self.failure is not None:
            raise self.failure
        return [NonFinite("broken") if item == 13 else item for item in items]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def make(model: Model) -> AsyncIterator[Callable[..., TokenBatcher[int, int]]]:
    thread = ComputeThread("test")

    def make(
        batch_tokens: int = 10, wait_seconds: float = 0.01, max_queued_tokens: int = 100
    ) -> TokenBatcher[int, int]:
        return TokenBatcher(
            thread,
            model.compute,
            tokens_of=lambda item: item,
            batch_tokens=batch_tokens,
            wait_seconds=wait_seconds,
            max_queued_tokens=max_queued_tokens,
        )

    yield make
    model.released.set()
    thread.close()


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)
    event.clear()


async def test_items_are_batched_in_order_of_arrival_up_to_the_token_budget(make, model) -> None:
    assert await make().submit([4, 4, 4, 9, 1, 1]) == [4, 4, 4, 9, 1, 1]
    assert model.batches == [[4, 4], [4], [9, 1], [1]]


async def test_an_item_beyond_the_budget_is_a_batch_of_its_own(make, model) -> None:
    assert await make().submit([3, 50, 3]) == [3, 50, 3]
    assert model.batches == [[3], [50], [3]]


async def test_calls_that_come_within_the_wait_share_a_batch(make, model) -> None:
    batcher = make(wait_seconds=0.2)
    assert await asyncio.gather(batcher.submit([1]), batcher.submit([2, 3])) == [[1], [2, 3]]
    assert model.batches == [[1, 2, 3]]


async def test_a_full_batch_does_not_wait(make, model) -> None:
    async with asyncio.timeout(5):
        assert await make(wait_seconds=60).submit([5, 5]) == [5, 5]


async def test_what_arrives_during_a_batch_is_the_next_one(make, model) -> None:
    batcher = make()
    model.released.clear()
    first = asyncio.create_task(batcher.submit([9]))
    await until(model.entered)
    later = [asyncio.create_task(batcher.submit([item])) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    model.released.set()
    assert await asyncio.gather(first, *later) == [[9], [1], [2], [3]]
    assert model.batches == [[9], [1, 2, 3]]


async def test_a_cancelled_calls_queued_items_are_dropped_and_their_room_is_free_again(make, model) -> None:
    batcher = make(max_queued_tokens=20)
    model.released.clear()
    running = asyncio.create_task(batcher.submit([10]))
    await until(model.entered)
    waiting = asyncio.create_task(batcher.submit([6, 6, 6]))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="18 tokens are queued and at most 20 may be"):
        await batcher.submit([3])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    last = asyncio.create_task(batcher.submit([3]))
    await asyncio.sleep(0)
    model.released.set()
    assert await asyncio.gather(running, last) == [[10], [3]]
    assert model.batches == [[10], [3]]


async def test_a_call_larger_than_the_queue_is_told_to_split(make) -> None:
    with pytest.raises(ResourceExhausted, match="split it"):
        await make(max_queued_tokens=5).submit([3, 3])


async def test_an_items_own_error_reaches_its_caller_only(make, model) -> None:
    batcher = make(batch_tokens=50, wait_seconds=0.1)
    good, bad = await asyncio.gather(batcher.submit([1]), batcher.submit([2, 13]), return_exceptions=True)
    assert good == [1]
    assert isinstance(bad, NonFinite)
    assert model.batches == [[1, 2, 13]]


async def test_a_failing_batch_fails_its_callers_and_the_next_one_runs(make, model) -> None:
    batcher = make()
    model.failure = RuntimeError("out of memory")
    outcomes = await asyncio.gather(batcher.submit([1]), batcher.submit([2]), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["out of memory"] * 2
    model.failure = None
    assert await batcher.submit([3]) == [3]


async def test_the_loop_runs_while_the_thread_computes(make, model) -> None:
    model.released.clear()
    running = asyncio.create_task(make().submit([1]))
    await until(model.entered)
    turns = 0
    for _ in range(100):
        await asyncio.sleep(0)
        turns += 1
    assert turns == 100
    assert not running.done()
    model.released.set()
    assert await running == [1]


async def test_a_compute_thread_runs_one_thing_at_a_time_in_order_on_its_own_thread() -> None:
    thread, log = ComputeThread("own", threads=1), []

    def note(name: str) -> str:
        log.append((name, threading.current_thread().name))
        return name

    assert await asyncio.gather(*(thread.run(note, name) for name in "abc")) == ["a", "b", "c"]
    assert log == [("a", "own_0"), ("b", "own_0"), ("c", "own_0")]
    thread.close()


async def test_training_and_callers_share_a_batch_and_callers_take_turns(make, model) -> None:
    batcher = make(batch_tokens=100, max_queued_tokens=1000)
    model.released.clear()

    async def ask(flow: Flow, items: list[int]) -> list[int]:
        flows.begin(flow)
        return await batcher.submit(items)

    first = asyncio.create_task(ask(Flow(training=True), [1]))  # holds the thread while the others come
    await until(model.entered)
    greedy = [asyncio.create_task(ask(Flow(caller="greedy"), [10] * 30))]
    lone = asyncio.create_task(ask(Flow(caller="lone"), [10, 10]))
    training = asyncio.create_task(ask(Flow(training=True), [7] * 6))
    await asyncio.sleep(0.05)
    model.released.set()
    await asyncio.gather(first, lone, training)
    second = model.batches[1]
    assert second[:6] == [7] * 6, "the side that asks for less is not cut"
    assert second.count(10) <= 5, "nor does the other get more tokens than it, but for the last item"
    assert lone.done()
    assert not greedy[0].done() or sum(map(len, model.batches)) == 39
    await greedy[0]


async def test_a_full_queue_of_callers_refuses_no_training(make, model) -> None:
    batcher = make(batch_tokens=10, max_queued_tokens=50)
    model.released.clear()

    async def ask(flow: Flow, items: list[int]) -> list[int]:
        flows.begin(flow)
        return await batcher.submit(items)

    first = asyncio.create_task(ask(Flow(caller="a"), [10]))
    await until(model.entered)
    crowd = asyncio.create_task(ask(Flow(caller="a"), [10] * 5))
    await asyncio.sleep(0.01)
    with pytest.raises(ResourceExhausted):
        await ask(Flow(caller="b"), [10])
    training = asyncio.create_task(ask(Flow(training=True), [10] * 5))
    await asyncio.sleep(0.01)
    model.released.set()
    assert await training == [10] * 5
    await asyncio.gather(first, crowd)
