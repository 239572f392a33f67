"""Data: reads a source of demonstrations and human feedback, and splits it so that no prompt is on two sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lodestar.config.data import DataConfig
from lodestar.config.run import RunConfig
from lodestar.recipe.stage import Bench, Kind, Stage


class Data(Stage, DataConfig):
    """Demonstrations, feedback, prompts and text in their normal form (lodestar.data.files), and a tokenizer where the
    run makes its model from nothing."""

    makes: ClassVar[Mapping[str, Kind]] = {
        "demonstrations": "demonstrations",
        "feedback": "feedback",
        "prompts": "prompts",
        "text": "text",
        "figures": "figures",
    }

    def outputs(self, run: RunConfig) -> Mapping[str, Kind]:
        """A tokenizer too, where no model is given."""
        return self.makes if run.model.path is not None else {**self.makes, "tokenizer": "tokenizer"}

    def run(self, bench: Bench) -> None:
        """See lodestar.data.prepare."""
        from lodestar.data.files import DataFiles
        from lodestar.data.prepare import prepare

        prepare(
            self,
            bench.config.model,
            DataFiles(bench.unfinished),
            seed=bench.seed,
            response_tokens=bench.plan.response_tokens,
            progress=bench.progress,
        )
