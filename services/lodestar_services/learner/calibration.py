"""The calibration offset of the scores: the mean score of demonstrations or samples, asked of those who will give them.

With it a score of 0 is that of a demonstration (Stiennon et al. 2020), or of the start model.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lodestar.client import PolicyClient, RewardClient
from lodestar.config import Endpoints, PpoConfig
from lodestar.data.files import read_demonstrations
from lodestar.errors import ConfigError, ResourceExhausted, Unavailable
from lodestar.liveness import waiting
from lodestar.records import FinishReason, Prompt, SamplingParams, ScoreItem

log = logging.getLogger(__name__)
T = TypeVar("T")

CALIBRATION_ROWS = 512
"""Demonstrations or samples that are scored."""
CALL_SECONDS = 600.0
PATIENCE_SECONDS = 120.0
"""How long a server may be away: it may be starting again."""
PAUSE_SECONDS = 0.5


def calibration_offset(
    ppo: PpoConfig, demonstrations: Path | None, prompts: Sequence[Prompt], endpoints: Endpoints, tls: Path | None
) -> float:
    """What ``ppo.score.offset`` asks for.

    Raises:
        ConfigError: demonstrations are asked for, and there are none.
        Unavailable: a server stayed away longer than PATIENCE_SECONDS.
    """
    wanted = ppo.score.offset
    if isinstance(wanted, float | int):
        return float(wanted)
    if wanted == "none":
        return 0.0
    rows = prompts[:CALIBRATION_ROWS]
    items = _samples(ppo, rows, endpoints, tls) if wanted == "samples" else _demonstrations(demonstrations)
    with waiting(), RewardClient(endpoints.reward, tls=tls) as client:
        scores = _patiently(lambda: client.score(items, timeout=CALL_SECONDS)).scores
    offset = statistics.fmean(score.score for score in scores)
    log.info("calibration offset %.4f: the mean score of %d %s", offset, len(items), wanted)
    return offset


def _demonstrations(file: Path | None) -> list[ScoreItem]:
    if file is None:
        raise ConfigError(
            "ppo.score.offset", "demonstrations: the learner was told of none; set samples, none or a number"
        )
    rows = read_demonstrations(file)[:CALIBRATION_ROWS]
    return [ScoreItem(row.prompt, row.completion) for row in rows]


def _samples(ppo: PpoConfig, prompts: Sequence[Prompt], endpoints: Endpoints, tls: Path | None) -> list[ScoreItem]:
    """Samples of the start model, which every policy server serves until it hears of another."""
    with waiting(), PolicyClient(endpoints.policy, tls=tls) as client, ThreadPoolExecutor(64) as threads:

        def sample(seed: int, prompt: Prompt) -> ScoreItem:
            options = SamplingParams(max_tokens=ppo.max_tokens, temperature=ppo.temperature, seed=seed)
            made = _patiently(lambda: client.generate(prompt.token_ids, options, timeout=CALL_SECONDS))
            completion = made.completions[0]
            cut_off = completion.finish_reason is not FinishReason.EOS
            return ScoreItem(prompt.text, completion.text, cut_off=cut_off)

        return list(threads.map(sample, range(len(prompts)), prompts))


def _patiently(call: Callable[[], T]) -> T:
    """The call's answer, asked again while its server is away."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except (Unavailable, ResourceExhausted):
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)
