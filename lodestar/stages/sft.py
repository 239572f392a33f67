"""Supervised fine-tuning on demonstrations: InstructGPT's first step (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lodestar.config.training import TrainingConfig
from lodestar.recipe.stage import Bench, Kind, Stage


class Sft(Stage, TrainingConfig):
    """Next-token prediction on the demonstrations' completions, from the model before it or from nothing."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": ("model", "tokenizer"),
        "demonstrations": "demonstrations",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})

    def run(self, bench: Bench) -> None:
        """See lodestar.train.language."""
        fine_tune(self, bench, bench.take("demonstrations"))


def fine_tune(training: TrainingConfig, bench: Bench, demonstrations: Path) -> None:
    """Trains ``policy`` on a folder of demonstrations, from the stage's own input or from nothing."""
    from lodestar.train import train_sft
    from lodestar.train.fit import write_fit

    fitted = train_sft(
        training,
        bench.config.model,
        demonstrations=demonstrations,
        start=bench.take("policy") if bench.kind("policy") == "model" else None,
        tokenizer=bench.tokenizer("policy"),
        output=bench.make("policy"),
        state=bench.unfinished / "state.pt",
        seed=bench.seed,
        progress=bench.progress,
    )
    write_fit(bench.make("figures"), fitted)
