"""Pairs about which the members of a reward ensemble disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from lodestar.errors import FailedPrecondition
from lodestar.labelling.choose import ActivePairs

Members = Sequence[float]


def row(ticket: int, **members: Members) -> dict[str, Any]:
    replies = [
        {"text": text, "score": sum(scores) / len(scores), "members": scores} for text, scores in members.items()
    ]
    return {"ticket": str(ticket), "prompt": f"q{ticket}", "replies": replies}


def drawn(prompts: int, replies: int, members: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [row(i, **{f"r{j}": rng.normal(size=members).tolist() for j in range(replies)}) for i in range(prompts)]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def coin(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def spread(margins: Members) -> float:
    p = [sigma(m) for m in margins]
    mean = sum(p) / len(p)
    return math.sqrt(sum((one - mean) ** 2 for one in p) / len(p))


def information(margins: Members) -> float:
    p = [sigma(m) for m in margins]
    return coin(sum(p) / len(p)) - sum(map(coin, p)) / len(p)


def removed(margins: Members) -> float:
    return min(sum(1 - min(1.0, math.exp(sign * m)) for m in margins) / len(margins) for sign in (1, -1))


BY_HAND: dict[str, Callable[[Members], float]] = {
    "disagreement": spread,
    "bald": information,
    "volume_removal": removed,
}


@pytest.mark.parametrize("chooser", BY_HAND)
def test_a_prompts_best_pair_comes_first_and_of_too_many_prompts_those_that_teach_most(chooser: str) -> None:
    samples = drawn(9, 4, 5)
    value = BY_HAND[chooser]
    best = {}
    for one in samples:
        pairs = {
            (a["text"], b["text"]): value([x - y for x, y in zip(a["members"], b["members"], strict=True)])
            for a, b in combinations(one["replies"], 2)
        }
        names = max(pairs, key=lambda pair: pairs[pair])
        best[one["prompt"]] = (pairs[names], frozenset(names))
    in_order = sorted(best, key=lambda prompt: -best[prompt][0])
    chosen = ActivePairs(chooser).choose(samples, 4, 7)
    assert [one.prompt for one in chosen] == in_order[:4]
    assert [frozenset(one.replies) for one in chosen] == [best[prompt][1] for prompt in in_order[:4]]
    everything = ActivePairs(chooser).choose(samples, 99, 7)
    assert [one.prompt for one in everything[:9]] == in_order
    assert len(everything) == len({one.id for one in everything}) == 9 * 6


def test_choosers_differ_where_a_toss_up_is_no_lesson() -> None:
    """Members that all say 50:50 are uncertain and agree; members that are sure and differ have something to learn."""
    samples = [row(0, a=[1.0, 1.0], b=[1.0, 1.0]), row(1, a=[3.0, -3.0], b=[0.0, 0.0])]
    for chooser in BY_HAND:
        (asked,) = ActivePairs(chooser).choose(samples, 1, 0)
        assert asked.prompt == "q1", chooser
        assert sorted(asked.scores) == [0.0, 0.0], "nearest of all by their means"


def test_a_diverse_batch_asks_nothing_twice_though_it_is_put_the_other_way_round() -> None:
    alike = [row(i, a=[4.0, -4.0, 4.0], b=[0.0, 0.0, 0.0]) for i in range(3)]
    mirrored = [row(3, a=[-3.9, 3.9, -3.9], b=[0.0, 0.0, 0.0])]
    other = [row(4, a=[2.0, 2.0, -2.0], b=[0.0, 0.0, 0.0])]
    plain = ActivePairs("bald").choose([*alike, *mirrored, *other], 2, 1)
    assert {one.prompt for one in plain} <= {"q0", "q1", "q2"}
    diverse = ActivePairs("bald", diverse=True).choose([*alike, *mirrored, *other], 2, 1)
    assert diverse[0].prompt == plain[0].prompt
    assert diverse[1].prompt == "q4"


@pytest.mark.parametrize("members", [None, [1.0], [1.0, 2.0, 3.0]])
def test_every_reply_needs_the_same_members(members: list[float] | None) -> None:
    odd = row(1, a=[1.0, 2.0], b=[0.0, 1.0])
    if members is None:
        del odd["replies"][0]["members"]
    else:
        odd["replies"][0]["members"] = members
    with pytest.raises(FailedPrecondition, match=r"label choose: bald needs what each member of one reward ensemble"):
        ActivePairs("bald").choose([row(0, a=[1.0, 2.0], b=[0.0, 1.0]), odd], 1, 0)


def test_nothing_to_ask_is_nothing_asked() -> None:
    assert ActivePairs("bald").choose([row(0, a=[1.0, 2.0])], 5, 0) == []
