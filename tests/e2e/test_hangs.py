"""Processes are stopped (SIGSTOP) in the middle of a step and never go on by themselves: the run says who hangs,
starts it again, and comes out as one that nothing befell."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lodestar.config import RunConfig
from lodestar.local.tiny import tiny_config, write_tiny_models
from lodestar.rollouts.ledger import verify_ledger
from tests.e2e.conducting import Fault, Run, Watched

pytestmark = pytest.mark.timeout(900)
BATCH, STEPS = 16, 7


def config(root: Path, name: str, hang_seconds: float = 4.0) -> RunConfig:
    return tiny_config(
        root,
        name,
        deterministic=True,
        ppo={"steps": STEPS, "batch": BATCH, "max_tokens": 24, "epochs": 1, "score": {"offset": "none"}},
        rollout={"in_flight": 3, "version_wait_seconds": 1.0},
        queue={"heartbeat_seconds": 0.3, "claim_seconds": 1.0, "reconcile_seconds": 3.0},
        learner={"checkpoint_every": 2, "threads": 1},
        services={"hang_seconds": hang_seconds},
    )


def stop(crew: Watched, name: str) -> Callable[[], None]:
    return lambda: os.kill(crew.member(name).child.pid, signal.SIGSTOP)


def stop_weights_server(crew: Watched) -> Callable[[], None]:
    def strike() -> None:
        (server,) = psutil.Process(crew.member("learner-0").child.pid).children()
        server.suspend()

    return strike


@pytest.mark.slow
def test_whatever_hangs_is_named_and_started_again_and_the_run_is_bit_equal(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny", hidden=48, layers=2, eos_bias=0.5)
    whole, broken = Run(config(tmp_path, "whole")), Run(config(tmp_path, "hung"))
    whole.conduct()
    victims = ["reward-0", "rollout-0", "policy-0", "weights", "reference-0", "learner-0"]

    def faults(crew: Watched) -> list[Fault]:
        def redis() -> None:
            assert crew.redis is not None
            os.kill(crew.redis.pid or 0, signal.SIGSTOP)

        strikes = [stop_weights_server(crew) if name == "weights" else stop(crew, name) for name in victims]
        return [Fault(crew, step, strike) for step, strike in enumerate([*strikes, redis])]

    restarts = broken.conduct(faults)
    services = [name for name in victims if name != "weights"]
    assert restarts == dict.fromkeys([*services, "redis"], 1)
    said = [message.text for message in broken.crew.board.messages if message.level == "warning"]
    for name in services:
        own = [line for line in said if line.startswith(name)]
        assert any(line.startswith(f"{name} hangs: it is stopped (SIGSTOP)") for line in own), "\n".join(said)
        assert any(line.startswith(f"{name} hung (it is stopped (SIGSTOP) for") for line in own), "\n".join(said)
    assert "redis is stopped (SIGSTOP); after 4 s it is started again" in said
    assert "the weights server hangs" in (broken.root / "logs" / "learner-0.log").read_text()
    assert verify_ledger(broken.figures("ledger.jsonl"), tickets=BATCH, steps=STEPS) == []
    assert broken.curve() == whole.curve()
    assert (broken.policy / "model.safetensors").read_bytes() == (whole.policy / "model.safetensors").read_bytes()


def test_a_process_that_goes_on_before_its_time_is_over_is_let_be(tmp_path: Path) -> None:
    write_tiny_models(tmp_path / "tiny", hidden=48, layers=2, eos_bias=0.5)
    run = Run(config(tmp_path, "brief", hang_seconds=60.0))
    resumed: list[int] = []

    def faults(crew: Watched) -> list[Fault]:
        def pause() -> None:
            pid = crew.member("policy-0").child.pid
            os.kill(pid, signal.SIGSTOP)
            resumed.append(pid)

        return [Fault(crew, 1, pause)]

    def go_on_when_told(text: str) -> None:
        if text.startswith("policy-0 hangs"):
            os.kill(resumed[0], signal.SIGCONT)

    assert run.conduct(faults, hear=go_on_when_told) == {}
    said = [message.text for message in run.crew.board.messages]
    assert "policy-0 gives signs of life again" in said
