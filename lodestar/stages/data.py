"""Data: reads a source of demonstrations and human feedback, and splits it so that no prompt is on two sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lodestar.config.data import DataConfig
from lodestar.recipe.plan import Plan
from lodestar.recipe.stage import Bench, Kind, Stage


class Data(Stage, DataConfig):
    """Demonstrations, feedback, prompts and text in their normal form (lodestar.data.files), and the run's tokenizer:
    the given model's with its chat template, or one made from nothing."""

    makes: ClassVar[Mapping[str, Kind]] = {
        "demonstrations": "demonstrations",
        "feedback": "feedback",
        "prompts": "prompts",
        "text": "text",
        "tokenizer": "tokenizer",
        "figures": "figures",
    }

    def run(self, bench: Bench) -> None:
        """See lodestar.data.prepare."""
        from lodestar.crew.inputs import few_of
        from lodestar.data.files import DataFiles
        from lodestar.data.prepare import prepare

        counts = prepare(
            self,
            bench.config.model,
            DataFiles(bench.unfinished),
            seed=bench.seed,
            response_tokens=bench.plan.response_tokens,
            needed=needed(bench.plan, bench.step.name),
            functions=any(source.kind == "function" for source in bench.config.services.reward.sources),
            progress=bench.progress,
        )
        for warning in few_of(bench.plan, bench.step, counts["prompts.ppo"], counts["prompts.evaluation"]):
            bench.progress.warn(warning)


def needed(plan: Plan, name: str) -> dict[str, str]:
    """Kind → the first stage that cannot do without what the data stage of this name makes of it."""
    found: dict[str, str] = {}
    for step in plan.steps:
        for port, artifacts in step.inputs.items():
            alone = len(artifacts) == 1 and artifacts[0].startswith(f"{name}/")
            if alone and port not in step.stage.optional:
                found.setdefault(plan.kinds[artifacts[0]], f"stages.{step.name}")
    return found
