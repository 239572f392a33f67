"""The calibration offset, asked of real gRPC servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lodestar_services.learner import calibration
from lodestar_services.learner.calibration import calibration_offset

from lodestar.config import Endpoints, PpoConfig
from lodestar.errors import LodestarError, Unavailable
from lodestar.files import write_jsonl
from lodestar.records import Prompt
from tests.services.rollout.servers import Answers, serving

PROMPTS = [Prompt(f"p{i}", f"prompt {i}", (3, 4)) for i in range(5)]


def _ppo(offset: object) -> PpoConfig:
    return PpoConfig.model_validate({"score": {"offset": offset}})


async def _offset(offset: object, rows: Path, address: str) -> float:
    ends = Endpoints(policy=(address,), reward=(address,))
    return await asyncio.to_thread(calibration_offset, _ppo(offset), rows, PROMPTS, ends, None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "train.jsonl"
    write_jsonl(file, [{"prompt": f"question {i}", "completion": "answer"} for i in range(3)])
    return file


async def test_numbers_and_none_ask_nobody(rows: Path) -> None:
    assert await _offset(1.5, rows, "127.0.0.1:1") == 1.5
    assert await _offset("none", rows, "127.0.0.1:1") == 0.0


async def test_the_offset_is_the_mean_score_of_demonstrations_or_samples(rows: Path) -> None:
    answers = Answers()
    answers.hold.set()
    async with serving(answers) as address:
        assert await _offset("demonstrations", rows, address) == 1.0  # the scores are 0, 1, 2
        assert await _offset("samples", rows, address) == 2.0  # 0 … 4
    assert answers.calls["policy"] == len(PROMPTS)


async def test_a_server_that_starts_again_is_waited_for(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PAUSE_SECONDS", 0.01)
    left = 7  # more than the channel tries by itself

    def away(_: str) -> LodestarError | None:
        nonlocal left
        left -= 1
        return Unavailable("starting") if left >= 0 else None

    async with serving(Answers(trouble=away)) as address:
        assert await _offset("demonstrations", rows, address) == 1.0


async def test_patience_ends(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PATIENCE_SECONDS", 0.0)
    async with serving(Answers(trouble=lambda _: Unavailable("starting"))) as address:
        with pytest.raises(Unavailable, match="starting"):
            await _offset("demonstrations", rows, address)
