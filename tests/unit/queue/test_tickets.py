from __future__ import annotations

from collections import Counter

import pytest

from lodestar.config import PpoConfig
from lodestar.errors import DataError
from lodestar.rollouts.tickets import TicketSchedule
from tests.unit.queue.fleet import prompts, schedule


def test_a_ticket_depends_on_seed_step_and_index_alone() -> None:
    once, again = schedule(seed=3), schedule(seed=3)
    assert once.ticket("a", 7, 2) == again.ticket("a", 7, 2)
    assert schedule(seed=4).ticket("a", 7, 2) != once.ticket("a", 7, 2)


def test_every_prompt_comes_once_per_epoch_in_an_order_of_its_own() -> None:
    order = schedule(50, batch=10, steps=10)
    ids = [order.prompt(step, index).id for step in range(10) for index in range(10)]
    assert Counter(ids[:50]) == Counter(ids[50:]) == Counter(prompt.id for prompt in prompts(50))
    assert ids[:50] != ids[50:]


def test_an_epoch_may_end_inside_a_step() -> None:
    order = schedule(7, batch=4, steps=7)
    ids = [order.prompt(step, index).id for step in range(7) for index in range(4)]
    assert all(times == 4 for times in Counter(ids).values())


def test_no_two_places_share_a_seed_and_all_fit_a_signed_64_bit_number() -> None:
    order = schedule()
    seeds = [order.sampling_seed(step, index) for step in range(100) for index in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_reserve_prompts_are_none_of_the_steps_own_and_all_different() -> None:
    order = schedule(10, batch=4)
    own = {order.prompt(3, index).id for index in range(4)}
    reserves = [order.reserve(3, number).id for number in range(6)]
    assert own.isdisjoint(reserves)
    assert len(set(reserves)) == 6
    assert order.reserve(3, 6).id == reserves[0]


def test_a_reserve_exists_even_when_the_step_takes_every_prompt() -> None:
    assert schedule(4, batch=4).reserve(0, 1).id in {prompt.id for prompt in prompts(4)}


def test_the_ticket_carries_the_configuration() -> None:
    ppo = PpoConfig(batch=8, samples_per_prompt=2, max_tokens=9, temperature=0.5, max_staleness=2)
    order = TicketSchedule(prompts(5), ppo, run="r", seed=0)
    ticket = order.ticket("a", 5, 3)
    assert (ticket.run, ticket.n, ticket.max_tokens, ticket.temperature, ticket.min_step) == ("r", 2, 9, 0.5, 3)
    assert order.ticket("a", 1, 0).min_step == 0
    assert order.tickets == 4


def test_no_prompts_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="no prompts to train on"):
        TicketSchedule([], PpoConfig(), run="r", seed=0)
