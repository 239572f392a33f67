"""SIGTERM under load, on real processes: calls in flight finish, new ones go elsewhere, the exit is in time."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lodestar_services.learner.publisher import WeightPublisher

from lodestar.client import PolicyClient, ReferenceClient, RewardClient
from lodestar.config import LearnerConfig, LearnerTask, PpoConfig
from lodestar.local.redis_server import RedisServer
from lodestar.model.loading import load_causal_lm
from lodestar.queue.port import Delivery
from lodestar.queue.redis import RedisLearnerQueue
from lodestar.records import Prompt, Rollout, Scored, Ticket
from lodestar.rpc.channel import serving

DRAIN_SECONDS = 10.0
CALLERS = 6
TIMEOUT = 30.0


def generate(client: Any) -> None:
    answer = client.generate((1, 5, 8, 9), n=2, max_tokens=40, ignore_eos=True)
    assert [len(completion.token_ids) for completion in answer.completions] == [40, 40]


def score(client: Any) -> None:
    assert len(client.score([("the sky is", "blue")] * 8).scores) == 8


def logprobs(client: Any) -> None:
    assert len(client.logprobs([Scored((1, 5, 8, 9), 2)] * 8).sequences) == 8


class Load:
    """Callers that share one client and ask until told to stop; what any of them raised, and when answers came."""

    def __init__(self, client: Any, ask: Callable[[Any], None]) -> None:
        self.answers: list[float] = []
        self.failures: list[BaseException] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(client, ask)) for _ in range(CALLERS)]

    def _work(self, client: Any, ask: Callable[[Any], None]) -> None:
        while not self._stopping.is_set():
            try:
                ask(client)
            except BaseException as error:
                self.failures.append(error)
                return
            self.answers.append(time.monotonic())

    def wait_for(self, more: int) -> None:
        target, deadline = len(self.answers) + more, time.monotonic() + TIMEOUT
        while len(self.answers) < target and not self.failures:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join(TIMEOUT)


@pytest.mark.parametrize(
    ("role", "kind", "ask"),
    [("policy", PolicyClient, generate), ("reward", RewardClient, score), ("reference", ReferenceClient, logprobs)],
)
def test_a_terminated_replica_loses_no_call(
    start_service: Any, tiny_models: Any, role: str, kind: Any, ask: Callable[[Any], None]
) -> None:
    model = str(tiny_models.reward if role == "reward" else tiny_models.sft)
    section = {"drain_seconds": DRAIN_SECONDS}
    first, second = (start_service(role, model=model, section=section) for _ in range(2))
    with kind([first.address, second.address], timeout=TIMEOUT) as client:
        load = Load(client, ask)
        with load.running():
            load.wait_for(4 * CALLERS)
            told = time.monotonic()
            os.kill(first.child.pid, signal.SIGTERM)
            assert first.child.wait(DRAIN_SECONDS) == 0, first.child.tail(20)
            gone = time.monotonic()
            load.wait_for(4 * CALLERS)
    assert load.failures == []
    assert gone - told < DRAIN_SECONDS
    assert not serving(first.address)
    assert serving(second.address)
    second.child.stop(10)


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), append_only=False) as server:
        yield server


def receive(queue: RedisLearnerQueue, wanted: int, into: list[Delivery]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while len(into) < wanted:
        assert time.monotonic() < deadline, f"{len(into)} of {wanted}"
        into += queue.receive(0.2)


def test_a_terminated_worker_hands_its_tickets_on(
    start_service: Any,
    tiny_models: Any,
    reward_service: Any,
    reference_service: Any,
    own_redis: RedisServer,
    tmp_path: Path,
) -> None:
    incarnation = uuid.uuid4().hex[:8]
    model = load_causal_lm(tiny_models.sft)
    section = LearnerConfig(weight_versions=1)
    publisher = WeightPublisher(
        tmp_path / "weights", run="test", incarnation=incarnation, tokenizer_hash="", section=section
    )
    weights = publisher.serve(
        LearnerTask(
            run="test",
            folder=tmp_path,
            ppo=PpoConfig(),
            policy=str(tiny_models.sft),
            reference=str(tiny_models.sft),
            prompts=tmp_path,
            state=tmp_path,
            figures=tmp_path,
            output=tmp_path,
        )
    )
    publisher.publish(model, 0)
    policy = start_service("policy", model=str(tiny_models.sft), endpoints={"weights": f"127.0.0.1:{weights}"})
    endpoints = {
        "redis": own_redis.url,
        "policy": [policy.address],
        "reward": [reward_service.address],
        "reference": [reference_service.address],
    }
    worker = {"section": {"in_flight": 8}, "queue": {"heartbeat_seconds": 1, "claim_seconds": 30}}
    endpoints["weights"] = f"127.0.0.1:{weights}"
    queue = RedisLearnerQueue(own_redis.url)
    queue.open("test", incarnation)
    tickets = [
        Ticket("test", incarnation, 0, index, Prompt(str(index), "what ?", (1, 5, 8)), 2, index, 0, 40, 1.0)
        for index in range(60)
    ]
    deliveries: list[Delivery] = []
    try:
        first = start_service("rollout", **worker, endpoints=endpoints)
        queue.issue(tickets)
        receive(queue, 5, deliveries)
        told = time.monotonic()
        os.kill(first.child.pid, signal.SIGTERM)
        assert first.child.wait(20) == 0, first.child.tail(20)
        assert time.monotonic() - told < 20
        deliveries += queue.receive(0)
        assert len(deliveries) < len(tickets), "it should have had work left"
        # Claims are good for 30 s: what comes sooner was handed back, not abandoned.
        second = start_service("rollout", **worker, endpoints=endpoints, replica=0)
        receive(queue, len(tickets), deliveries)
        second.child.stop(20)
    finally:
        queue.close()
        policy.child.stop(10)
        publisher.close()
    outcomes = [delivery.item for delivery in deliveries]
    assert all(isinstance(outcome, Rollout) for outcome in outcomes)
    assert sorted(outcome.ticket.index for outcome in outcomes) == list(range(60))
    assert {outcome.ticket.attempt for outcome in outcomes} == {0}
