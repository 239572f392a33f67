"""Training and outside callers at one engine: steps, places and cache are shared, and nobody's tokens change."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lodestar.engine.engine import Engine
from lodestar.engine.sequence import Request
from lodestar.fair import LENT_SECONDS, Costs, Flow
from lodestar.records import SamplingParams

TRAINING = Flow(training=True)
LONG = 40


@pytest.fixture(autouse=True)
def steps_cost_what_their_tokens_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fixed part: the sides get equal tokens whatever the clock says."""
    monkeypatch.setattr(Costs, "observe", lambda self, tokens, seconds: None)


def ask(engine: Engine, flow: Flow, count: int, tokens: int = LONG, seed: int = 0) -> list[Request]:
    made = []
    for number in range(count):
        sampling = SamplingParams(tokens, ignore_eos=True, seed=seed + number)
        made.append(engine.request([3 + (seed + number) % 50, 5, 7], sampling, flow=flow))
        engine.add(made[-1])
    return made


def length(request: Request) -> int:
    return len(request.sequences[0].response)


def test_training_gets_half_of_the_tokens_beside_many_callers_who_take_turns(make_engine: Any) -> None:
    engine = make_engine(max_sequences=64)
    training = ask(engine, TRAINING, 8)
    callers = [one for n in range(24) for one in ask(engine, Flow(caller=str(n)), 1, seed=100 + n)]
    for _ in range(30):
        engine.step()
    assert all(length(request) >= 28 for request in training), "never cut: it asks for less"
    given = [length(request) for request in callers]
    assert sum(given) <= sum(map(length, training)) + 24
    assert sum(given) >= 0.8 * sum(map(length, training)), "nor is anything wasted"
    assert max(given) - min(given) <= 2


def test_a_lone_caller_is_never_cut_and_training_is(make_engine: Any) -> None:
    engine = make_engine(max_sequences=64)
    training = ask(engine, TRAINING, 32)
    (caller,) = ask(engine, Flow(caller="lone"), 1, seed=99)
    for _ in range(20):
        engine.step()
    assert length(caller) >= 18
    assert sum(map(length, training)) <= 32 + 40


def test_what_callers_run_beyond_their_share_yields_to_training_and_is_finished_later(make_engine: Any) -> None:
    engine = make_engine(max_sequences=8)
    callers = ask(engine, Flow(caller="crowd"), 12)
    engine.step()
    assert len(engine.scheduler.running) == 8, "unused shares are lent"
    training = ask(engine, TRAINING, 6, seed=50)
    engine.step()
    running = [sequence.request.flow.training for sequence in engine.scheduler.running]
    assert (running.count(True), running.count(False)) == (4, 4)
    while engine.scheduler:
        engine.step()
    assert {length(request) for request in [*callers, *training]} == {LONG}


def test_a_share_is_lent_again_once_its_owner_has_gone(make_engine: Any) -> None:
    engine = make_engine(max_sequences=8)
    ask(engine, TRAINING, 1, tokens=2)
    callers = ask(engine, Flow(caller="crowd"), 12)
    for _ in range(3):
        engine.step()
    assert len(engine.scheduler.running) == 4, "training may come back at once"
    time.sleep(LENT_SECONDS * 1.2)
    before = [length(request) for request in callers]
    engine.step()
    assert len(engine.scheduler.running) == 8
    assert sum(map(length, callers)) - sum(before) == 8


@pytest.mark.parametrize("deterministic", [False, True])
def test_nobodys_tokens_depend_on_who_shares_the_engine(make_engine: Any, deterministic: bool) -> None:
    alone = make_engine(max_sequences=8, deterministic=deterministic)
    wanted = ask(alone, TRAINING, 4)
    while alone.scheduler:
        alone.step()
    shared = make_engine(max_sequences=8, deterministic=deterministic)
    ask(shared, Flow(caller="a"), 9, seed=200)
    shared.step()
    made = ask(shared, TRAINING, 4)
    ask(shared, Flow(caller="b"), 9, seed=300)
    while shared.scheduler:
        shared.step()
    assert [r.sequences[0].response for r in made] == [r.sequences[0].response for r in wanted]


def test_one_caller_with_many_requests_does_not_hold_up_another(make_engine: Any) -> None:
    engine = make_engine(max_sequences=4)
    ask(engine, Flow(caller="greedy"), 40, tokens=10)
    for _ in range(15):
        engine.step()
    (lone,) = ask(engine, Flow(caller="lone"), 1, tokens=10, seed=77)
    for _ in range(22):
        engine.step()
    assert length(lone) == 10


def test_cancelled_requests_leave_nothing_behind(make_engine: Any) -> None:
    engine = make_engine(max_sequences=4)
    requests = ask(engine, Flow(caller="a"), 6) + ask(engine, TRAINING, 6, seed=9)
    engine.step()
    for request in requests:
        engine.abort(request.id)
    assert not engine.scheduler
    line = engine.scheduler._line
    assert (line.waiting, dict(line._here), engine.scheduler._running) == (
        {True: 0, False: 0},
        {},
        {True: 0, False: 0},
    )
