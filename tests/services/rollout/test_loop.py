"""A rollout worker between the in-memory queue and real gRPC servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from lodestar_services.rollout import calls as calls_module
from lodestar_services.rollout import loop
from lodestar_services.rollout.calls import ModelCalls
from lodestar_services.rollout.loop import RolloutWorker

from lodestar.client import AsyncPolicyClient, AsyncReferenceClient, AsyncRewardClient
from lodestar.errors import DeadlineExceeded, InvalidArgument, LodestarError, NonFinite, TokenizerMismatch, Unavailable
from lodestar.queue.memory import MemoryBroker, MemoryLearnerQueue, MemoryWorkerQueue
from lodestar.queue.port import DeadLetter, Delivery
from lodestar.records import ChatMessage, FinishReason, Prompt, Rollout, Sample, Ticket, WeightVersion
from tests.services.rollout.servers import Answers, serving

HEARTBEAT_SECONDS = 0.05


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TAKE_SECONDS", 0.02)
    monkeypatch.setattr(calls_module, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def learner(broker: MemoryBroker) -> MemoryLearnerQueue:
    queue = MemoryLearnerQueue(broker)
    queue.open("demo", "a")
    return queue


@pytest.fixture
async def answers() -> Answers:
    made = Answers()
    made.hold.set()
    return made


def ticket(index: int = 0, n: int = 2) -> Ticket:
    return Ticket("demo", "a", 3, index, Prompt(f"p{index}", "what ?", (5, 6, index)), n, 17, 2, 16, 0.5)


class Running:
    """A worker at work."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.stopping = asyncio.Event()
        self.task = asyncio.create_task(worker.work(self.stopping))

    async def stop(self) -> None:
        self.stopping.set()
        await asyncio.wait_for(self.task, 5)


@asynccontextmanager
async def at_work(
    broker: MemoryBroker, answers: Answers, *, in_flight: int = 8, max_attempts: int = 2, claim_seconds: float = 10.0
) -> AsyncIterator[Running]:
    async with (
        serving(answers) as address,
        AsyncPolicyClient(address, timeout=5) as policy,
        AsyncRewardClient(address, timeout=5) as reward,
        AsyncReferenceClient(address, timeout=5) as reference,
    ):
        calls = ModelCalls(policy, reward, reference, version_wait_seconds=0.5, call_tokens=1024)
        await calls.meet()
        queue = MemoryWorkerQueue(broker, "demo", "w", max_attempts=max_attempts, claim_seconds=claim_seconds)
        worker = RolloutWorker(queue, calls, name="w", in_flight=in_flight, heartbeat_seconds=HEARTBEAT_SECONDS)
        running = Running(worker)
        try:
            yield running
        finally:
            if not running.task.done():
                await running.stop()


async def received(learner: MemoryLearnerQueue, count: int) -> list[Delivery]:
    async with asyncio.timeout(5):
        deliveries: list[Delivery] = []
        while len(deliveries) < count:
            deliveries += learner.receive(0)
            await asyncio.sleep(0.005)
    return deliveries


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_ticket_becomes_a_rollout_with_everything_ppo_needs(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    learner.issue([ticket()])
    async with at_work(broker, answers):
        (delivery,) = await received(learner, 1)
    rollout = delivery.item
    assert isinstance(rollout, Rollout)
    assert rollout.ticket == ticket()
    assert rollout.version == WeightVersion("a", 2, "d")
    assert rollout.worker == "w"
    assert rollout.generate_seconds > 0
    assert rollout.score_seconds > 0
    assert rollout.samples == tuple(
        Sample((100 + i, 1), (-1.0, -0.5), (-2.0, -2.0), float(i), FinishReason.EOS, f"sample {i}", 0.5) for i in (0, 1)
    )
    assert answers.calls == {"policy": 1, "reward": 1, "reference": 1}
    generate = answers.requests[0]
    assert list(generate.tokens.ids) == [5, 6, 0]
    assert (generate.min_version.incarnation, generate.min_version.step) == ("a", 2)
    assert (generate.sampling.seed, generate.sampling.temperature, generate.sampling.n) == (17, 0.5, 2)
    assert generate.purpose == 2
    assert generate.tokenizer_hash == "tok"


async def test_a_reward_model_with_the_policys_tokenizer_gets_tokens(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    learner.issue([ticket(n=1)])
    async with at_work(broker, answers):
        await received(learner, 1)
    (request,) = [request for request in answers.requests if hasattr(request, "items")]
    assert request.tokenizer_hash == "tok"
    assert list(request.items[0].prompt_tokens.ids) == [5, 6, 0]
    assert list(request.items[0].completion_tokens.ids) == [100, 1]


async def test_a_reward_model_with_another_tokenizer_gets_text(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    answers.reward_tokenizer = "other"
    learner.issue([ticket(n=1)])
    async with at_work(broker, answers):
        await received(learner, 1)
    (request,) = [request for request in answers.requests if hasattr(request, "items")]
    assert request.tokenizer_hash == ""
    assert (request.items[0].prompt_text, request.items[0].completion_text) == ("what ?", "sample 0")
    assert not request.items[0].cut_off


async def test_a_reference_with_another_tokenizer_is_refused_at_the_start(answers: Answers) -> None:
    other = replace(answers, tokenizer="other")
    async with (
        serving(answers) as address,
        serving(other) as elsewhere,
        AsyncPolicyClient(address) as policy,
        AsyncRewardClient(address) as reward,
        AsyncReferenceClient(elsewhere) as reference,
    ):
        with pytest.raises(TokenizerMismatch, match="use the tokenizer saved beside the served model"):
            await ModelCalls(policy, reward, reference, version_wait_seconds=1, call_tokens=1024).meet()


async def test_several_tickets_are_rolled_out_at_once_but_no_more_than_allowed(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    answers.hold.clear()
    learner.issue([ticket(index) for index in range(6)])
    async with at_work(broker, answers, in_flight=4):
        await until(lambda: answers.calls["policy"] == 4)
        await asyncio.sleep(0.1)
        assert answers.calls["policy"] == 4
        assert learner.depth().taken == 4
        answers.hold.set()
        assert len(await received(learner, 6)) == 6


@pytest.mark.parametrize("role", ["policy", "reward", "reference"])
@pytest.mark.parametrize("error", [InvalidArgument("prompt", "is too long"), NonFinite("the score is NaN")])
async def test_a_tickets_own_error_counts_and_kills_it_with_the_servers_sentence(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers, role: str, error: LodestarError
) -> None:
    answers.trouble = lambda at: error if at == role else None
    learner.issue([ticket()])
    async with at_work(broker, answers, max_attempts=2):
        (delivery,) = await received(learner, 1)
    assert delivery.item == DeadLetter(ticket(), f"{error.status}: {error}", 2, "w")
    assert answers.calls[role] == 2


@pytest.mark.parametrize("role", ["policy", "reward", "reference"])
async def test_a_service_that_is_away_is_waited_for_and_counts_nothing(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers, role: str
) -> None:
    answers.trouble = lambda at: Unavailable("loading") if at == role and answers.calls[role] < 9 else None
    learner.issue([ticket()])
    async with at_work(broker, answers, max_attempts=1, claim_seconds=4 * HEARTBEAT_SECONDS):
        (delivery,) = await received(learner, 1)
    assert isinstance(delivery.item, Rollout)
    assert answers.calls["policy"] == (9 if role == "policy" else 1)  # what was generated is kept


async def test_claims_are_kept_while_the_worker_waits(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    answers.hold.clear()
    learner.issue([ticket()])
    other = MemoryWorkerQueue(broker, "demo", "other", claim_seconds=4 * HEARTBEAT_SECONDS)
    async with at_work(broker, answers, claim_seconds=4 * HEARTBEAT_SECONDS):
        await until(lambda: answers.calls["policy"])
        assert await other.take(1, 8 * HEARTBEAT_SECONDS) == []
        answers.hold.set()
        await received(learner, 1)


async def test_stopping_hands_tickets_back_without_counting(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    answers.hold.clear()
    learner.issue([ticket(0), ticket(1)])
    async with at_work(broker, answers) as running:
        await until(lambda: answers.calls["policy"] == 2)
        await running.stop()
        depth = learner.depth()
        assert (depth.waiting, depth.taken) == (2, 0)
    claims = await MemoryWorkerQueue(broker, "demo", "other").take(2, 0)
    assert [claim.deliveries for claim in claims] == [1, 1]


async def test_work_on_a_withdrawn_ticket_stops(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    answers.hold.clear()
    learner.issue([ticket(0), ticket(1)])
    async with at_work(broker, answers, in_flight=2):
        await until(lambda: answers.calls["policy"] == 2)
        learner.withdraw([ticket(0).id])
        learner.issue([ticket(2)])
        await until(lambda: answers.calls["policy"] == 3)  # its place went to another ticket
        answers.hold.set()
        indices = {delivery.item.ticket.index for delivery in await received(learner, 2)}
    assert indices == {1, 2}


async def test_a_prompt_without_tokens_is_the_tickets_own_error(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    learner.issue([replace(ticket(), prompt=Prompt("empty", "what ?"))])
    async with at_work(broker, answers, max_attempts=1):
        (delivery,) = await received(learner, 1)
    assert isinstance(delivery.item, DeadLetter)
    assert "prompt empty has no tokens" in delivery.item.error


async def test_a_slow_source_is_asked_for_less_at_once(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    def late(role: str) -> LodestarError | None:
        items = len(answers.requests[-1].items) if role == "reward" else 0
        return DeadlineExceeded("reward source mine did not judge in time") if items > 3 else None

    answers.trouble = late
    learner.issue([ticket(n=16)])
    async with at_work(broker, answers):
        (delivery,) = await received(learner, 1)
    assert isinstance(delivery.item, Rollout)
    assert len(delivery.item.samples) == 16
    sizes = [len(request.items) for request in answers.requests if hasattr(request, "items") and request.items]
    assert sizes[:3] == [16, 8, 4]
    assert set(sizes[3:]) <= {2, 4}


async def test_a_single_reply_that_is_always_late_fails_its_ticket_by_name(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    slow = DeadlineExceeded("reward source mine did not judge 1 completion within the call's deadline of 2.0 s")
    answers.trouble = lambda role: slow if role == "reward" else None
    learner.issue([ticket(n=2)])
    async with at_work(broker, answers, max_attempts=1):
        (delivery,) = await received(learner, 1)
    assert isinstance(delivery.item, DeadLetter)
    assert "reward source mine did not judge 1 completion" in delivery.item.error
    assert "raise rollout.deadline_seconds" in delivery.item.error
    assert answers.calls["reward"] < 30


async def test_columns_and_messages_go_to_the_reward(
    broker: MemoryBroker, learner: MemoryLearnerQueue, answers: Answers
) -> None:
    answers.reward_tokenizer = "another"
    prompt = Prompt("p", "what ?", (5, 6), (ChatMessage("user", "what ?"),), {"answer": "42", "tags": [1, None]})
    learner.issue([replace(ticket(n=1), prompt=prompt)])
    async with at_work(broker, answers):
        (delivery,) = await received(learner, 1)
    assert delivery.item.ticket.prompt == prompt
    (item,) = (item for request in answers.requests if hasattr(request, "items") for item in request.items)
    assert json.loads(item.columns) == {"answer": "42", "tags": [1, None]}
    assert [(m.role, m.content) for m in item.messages] == [("user", "what ?")]
