"""The reward server as a process: its start, its end, its load."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import urllib.request
from typing import Any

import pytest

from lodestar.client import RewardClient
from lodestar.errors import Unavailable
from lodestar.rpc.channel import serving


def figure(service: Any, name: str) -> float:
    """Sum of a metric's samples whose text starts with the name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.state.metrics_port}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_sigterm_lets_calls_in_flight_finish_and_exits_0(start_service: Any, tiny_models: Any) -> None:
    # The wait keeps calls in flight until the signal has arrived.
    service = start_service("reward", model=str(tiny_models.reward), section={"batch_wait_ms": 1000})
    outcomes: list[Any] = []

    def ask() -> None:
        with RewardClient(service.address) as client:
            try:
                outcomes.append(len(client.score([("the sky is", "blue")] * 16).scores))
            except Unavailable as error:
                outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    while figure(service, "lodestar_rpcs_in_flight") < 12:
        time.sleep(0.01)
    os.kill(service.child.pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert outcomes == [16] * 12
    assert service.child.wait(10) == 0, service.child.tail(20)
    assert not serving(service.address)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("/nowhere/reward", r"^/nowhere/reward: no such model folder"),
        ("sft", r"/sft: .* not a reward model or critic"),
    ],
)
def test_a_model_that_cannot_score_ends_the_process_with_a_sentence(
    start_service: Any, tiny_models: Any, model: str, sentence: str
) -> None:
    path = str(tiny_models.sft) if model == "sft" else model
    child = start_service("reward", model=path, wait=False)
    assert child.wait(20) == 2
    assert re.search(sentence, child.last_error())


def test_a_taken_port_ends_the_process_with_a_sentence_that_names_it(start_service: Any, tiny_models: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        child = start_service("reward", model=str(tiny_models.reward), port=port, wait=False)
        assert child.wait(20) == 2
    assert "--port" in child.last_error()
    assert f"127.0.0.1:{port}" in child.last_error()


def test_the_metrics_port_counts_rpcs_tokens_and_batches(reward_service: Any) -> None:
    rpcs = 'lodestar_rpcs_total{code="OK",method="lodestar.v1.RewardService/Score"}'
    before = {
        name: figure(reward_service, name) for name in (rpcs, "lodestar_tokens_in_total", "lodestar_batch_items_sum")
    }
    with RewardClient(reward_service.address) as client:
        client.score([("the sky is", "blue")] * 3)
    after = {name: figure(reward_service, name) for name in before}
    # <bos> the sky is blue <eos>: 6 tokens each
    assert [after[name] - before[name] for name in before] == [1, 18, 3]
    assert figure(reward_service, "lodestar_ready") == 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_scores_in_company_equal_scores_alone(start_service: Any, tiny_models: Any, deterministic: bool) -> None:
    section = {"batch_wait_ms": 50}
    service = start_service("reward", model=str(tiny_models.reward), section=section, deterministic=deterministic)
    words = ["what", "color", "is", "the", "sky", "it", "grass", "not", "red", "blue"]
    items = [(" ".join(words[: i % 9 + 1]), " ".join(words[i % 4 :])) for i in range(40)]
    with RewardClient(service.address) as client:
        together = [score.score for score in client.score(items).scores]
        alone = [client.score([item]).scores[0].score for item in items[:10]]
    if deterministic:
        assert alone == together[:10]
    else:
        assert alone == pytest.approx(together[:10], abs=1e-5)
    service.child.stop(5)
