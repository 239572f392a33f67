"""Properties of fair sharing: nobody is cut below its share, nothing is left unused, callers are served alike."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestar.fair import ITS_OWN, LENT_SECONDS, Costs, FairLine, Flow, Served, Shares

TRAINING = Flow(training=True)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.floats(0.1, 0.9),
    st.floats(0, 500),
)
def test_each_side_keeps_its_share_of_the_rate_that_it_has_alone(
    training: int, callers: int, share: float, fixed: float
) -> None:
    """A step of n tokens takes fixed + n; a side that always wants so many tokens gets them at a rate of n / step."""
    shares = Shares(share)
    shares.costs.fixed = fixed
    wanted = {True: training, False: callers}
    parts = shares.parts(wanted, now=0.0)
    taken = {side: min(wanted[side], parts[side]) for side in wanted}
    seconds = fixed + sum(taken.values())
    for side, weight in ((True, share), (False, 1 - share)):
        alone = wanted[side] / (fixed + wanted[side])
        assert taken[side] / seconds >= weight * alone * (1 - 1e-9)
    assert any(taken[side] == wanted[side] for side in wanted), "one of them is not cut"


@given(st.floats(0.05, 0.95), st.floats(0, 50), st.integers(1, 20))
def test_parts_below_one_sequence_add_up_over_steps(share: float, fixed: float, size: int) -> None:
    """Each side takes items of ``size`` tokens while it may; over many steps the tokens are in proportion."""
    shares = Shares(share)
    shares.costs.fixed = fixed
    wanted = {True: 300, False: 300}
    taken, parts = {True: 0, False: 0}, shares.parts(wanted, 0.0)
    steps = 60
    for step in range(steps):
        shares.begin(wanted, float(step))
        for side in wanted:
            here = 0
            while shares.may_take(side) and here + size <= wanted[side]:
                shares.take(side, size)
                here += size
            taken[side] += here
    for side in wanted:
        assert abs(taken[side] / steps - min(parts[side], wanted[side])) <= size


def test_somebody_may_always_take_however_much_both_owe() -> None:
    shares = Shares(0.3)
    shares.begin({True: 5, False: 5}, 0.0)
    shares.take(True, 1000)
    shares.take(False, 5000)
    shares.begin({True: 5, False: 5}, 0.1)
    assert shares.may_take(False), "5,000 at 11.7 a step are paid before 1,000 at 2.1"
    assert not shares.may_take(True)


def test_a_side_that_is_alone_always_goes_on_whatever_it_owes() -> None:
    shares = Shares(0.5)
    shares.begin({True: 5, False: 5}, 0.0)
    shares.take(True, 1000)
    shares.begin({True: 5, False: 0}, 0.1)
    assert shares.may_take(True)


def test_a_lone_callers_step_takes_at_most_twice_as_long_as_its_own() -> None:
    shares = Shares(0.5)
    shares.costs.fixed = 20.0
    taken = shares.parts({True: 400, False: 1}, now=0.0)[True]
    assert 20 + taken + 1 <= 2 * (20 + 1)


def test_what_one_side_does_not_use_is_lent_and_given_back() -> None:
    shares = Shares(0.5)
    assert shares.parts({True: 64, False: 0}, now=0.0) == {True: inf, False: 1.0 + 63}
    assert shares.parts({True: 64, False: 3}, now=1.0)[True] == 3
    assert shares.parts({True: 64, False: 0}, now=1.0 + LENT_SECONDS / 2)[True] == 3
    assert shares.parts({True: 64, False: 0}, now=1.0 + LENT_SECONDS)[True] == inf


@pytest.mark.parametrize(("fixed", "per_token"), [(0.004, 0.0002), (0.02, 0.00001), (0.0, 0.001)])
def test_the_fixed_part_of_a_step_is_learned_from_steps_of_different_sizes(fixed: float, per_token: float) -> None:
    costs, dice = Costs(), random.Random(0)
    for _ in range(300):
        tokens = dice.randint(1, 200)
        costs.observe(tokens, (fixed + per_token * tokens) * dice.uniform(0.98, 1.02))
    assert costs.fixed == pytest.approx(ITS_OWN * fixed / per_token, rel=0.15, abs=5)


def test_steps_of_one_size_and_steps_that_do_not_grow_are_understood() -> None:
    same, flat = Costs(), Costs()
    for step in range(50):
        same.observe(64, 0.01)
        flat.observe(1 + step, 0.01)
    assert same.fixed == 0
    assert flat.fixed > 10_000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=200), st.randoms())
def test_between_callers_that_always_want_more_the_difference_stays_below_two_items(
    pushed: list[tuple[int, int]], dice: random.Random
) -> None:
    line: FairLine[tuple[str, int]] = FairLine(lambda item: item[1])
    served = {"a": 0, "b": 0}
    largest = 0
    for name in served:  # both have more than will be taken
        for _ in range(200):
            line.push(Flow(caller=name), (name, dice.randint(1, 50)))
    for _, tokens in pushed:  # others come and go
        line.push(Flow(caller=f"c{tokens}"), (f"c{tokens}", tokens))
    for _ in range(150):
        name, tokens = line.pop(training=False)
        largest = max(largest, tokens)
        if name in served:
            served[name] += tokens
    assert abs(served["a"] - served["b"]) <= 2 * max(largest, 50)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 9)), max_size=60))
def test_everything_that_waits_is_taken_once_each_callers_own_in_order(work: list[tuple[bool, int, int]]) -> None:
    line: FairLine[tuple[Flow, int, int]] = FairLine(lambda item: item[2])
    for number, (training, caller, tokens) in enumerate(work):
        flow = Flow(training, "" if training else str(caller))
        line.push(flow, (flow, number, tokens))
    assert sum(line.tokens.values()) == sum(tokens for *_, tokens in work)
    taken = []
    while line:
        side = line.next(training=True) is not None
        taken.append(line.pop(training=side))
    assert sorted(number for _, number, _ in taken) == list(range(len(work)))
    for flow in {flow for flow, *_ in taken}:
        own = [number for one, number, _ in taken if one == flow]
        assert own == sorted(own)
    assert line.tokens == {True: 0, False: 0}


def test_one_caller_with_many_items_does_not_hold_up_another() -> None:
    line: FairLine[str] = FairLine(lambda _: 10)
    for _ in range(100):
        line.push(Flow(caller="greedy"), "greedy")
    for _ in range(20):
        line.pop(training=False)
    line.push(Flow(caller="lone"), "lone")
    assert "lone" in [line.pop(training=False) for _ in range(2)]


def test_a_caller_that_was_away_has_saved_up_nothing() -> None:
    served = Served()
    served.join("steady", set())
    served.charge("steady", 1000)
    served.join("back", {"steady"})
    assert served.of("back") == 1000


def test_items_that_nobody_waits_for_are_forgotten() -> None:
    line: FairLine[int] = FairLine(lambda item: item)
    for item in (1, 2, 3):
        line.push(TRAINING, item)
    line.forget(lambda item: item != 2)
    assert list(line) == [2]
    assert line.tokens[True] == 2
    line.forget(lambda _: True)
    assert not line
