"""Pretraining: next-token prediction on plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from lodestar.config.training import TrainingConfig
from lodestar.recipe.stage import Bench, Kind, Stage


class Pretrain(Stage, TrainingConfig):
    """Language modelling on the run's text, from the model before it or from nothing."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": ("model", "tokenizer"),
        "text": "text",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})

    document_tokens: int = Field(default=512, ge=2)
    """Longer documents are cut into pieces of this many."""

    def run(self, bench: Bench) -> None:
        """See lodestar.train.language."""
        from lodestar.train import pretrain
        from lodestar.train.fit import write_fit

        fitted = pretrain(
            self,
            bench.config.model,
            text=bench.take("text"),
            start=bench.take("policy") if bench.kind("policy") == "model" else None,
            tokenizer=bench.tokenizer("policy"),
            output=bench.make("policy"),
            state=bench.unfinished / "state.pt",
            seed=bench.seed,
            document_tokens=self.document_tokens,
            progress=bench.progress,
        )
        write_fit(bench.make("figures"), fitted)
