"""What goes wrong while many calls are at work is said as it is."""

from __future__ import annotations

import asyncio

import pytest

from lodestar.asking import admitted, together
from lodestar.config.services import PolicyConfig
from lodestar.errors import ResourceExhausted


def test_the_first_error_ends_the_others_and_is_raised_as_it_is() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("waits")
            raise

    async def refused() -> None:
        raise ResourceExhausted("4096 sequences wait and at most 4096 may")

    with pytest.raises(ResourceExhausted, match="4096 sequences wait"):
        asyncio.run(together([waits(), refused()]))
    assert ended == ["waits"]


def test_results_stand_in_the_order_of_the_calls() -> None:
    async def later(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert asyncio.run(together(map(later, (0.02, 0.0, 0.01)))) == [0.02, 0.0, 0.01]


@pytest.mark.parametrize(
    ("best_of", "max_waiting", "picks", "most"),
    [(1, 4096, False, 512), (16, 4096, True, 32), (16, 4096, False, 512), (16, 64, True, 4), (1, 100, False, 100)],
)
def test_no_server_is_asked_for_more_samples_than_may_wait(
    best_of: int, max_waiting: int, picks: bool, most: int
) -> None:
    section = PolicyConfig(best_of=best_of, max_waiting=max_waiting)
    assert admitted(section, picks=picks) == most
