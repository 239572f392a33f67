"""Filtered SFT: fine-tuning on the demonstrations that the reward likes best; PPO must beat it to be worth it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from lodestar.config.training import TrainingConfig
from lodestar.recipe.stage import Bench, Call, Kind, Stage
from lodestar.rivals import BEST_SHARE


class Filtered(Stage, TrainingConfig):
    """SFT from the model before it on a share of the demonstrations: those of the highest score. What it makes is a
    rival for the evaluation, and no model that later stages go on from."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "reward": "reward_model",
        "demonstrations": "demonstrations",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "rival", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"reward": Call("reward", "reward")}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})

    share: float = Field(default=BEST_SHARE, gt=0, le=1)
    """Of the demonstrations, by the reward's score."""

    def run(self, bench: Bench) -> None:
        """Scores, filters, trains."""
        from lodestar.asking import Asking
        from lodestar.data.files import read_demonstrations, write_jsonl
        from lodestar.records import ScoreItem
        from lodestar.rivals import best_demonstrations
        from lodestar.stages.sft import fine_tune

        asking = Asking((), bench.servers["reward"], 0, tls=bench.listening.tls)
        best = bench.unfinished / "best"
        for split in ("train", "held_out"):
            rows = read_demonstrations(bench.take("demonstrations") / f"{split}.jsonl")
            scores = asyncio.run(asking.scores([ScoreItem(row.prompt, row.completion) for row in rows]))
            write_jsonl(best / f"{split}.jsonl", best_demonstrations(rows, scores, share=self.share))
        fine_tune(self, bench, best)
