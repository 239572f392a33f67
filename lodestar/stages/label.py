"""Labelling: somebody says which of the policy's own replies are better (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Kind, Stage

if TYPE_CHECKING:
    from lodestar.labelling.port import Asked, Labeller

By = Literal["panel", "gold", "file"]


class Label(Stage):
    """Feedback on samples, split by prompt like any other."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {"samples": "samples"}
    makes: ClassVar[Mapping[str, Kind]] = {"feedback": "feedback", "figures": "figures"}

    by: By = "panel"
    """panel: the synthetic world's noisy annotators; gold: its hidden reward; file: rows that somebody writes."""
    budget: int | None = Field(default=None, ge=1)
    """Comparisons to ask for at most; unset: one per prompt."""
    choose: Literal["random"] = "random"
    """Which pairs to ask about. random: every prompt gets one pair before any gets a second."""
    file: str | None = None
    """by: file — feedback on these samples; while it is not there, the stage writes the questions and stops."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of prompts kept apart for held-out accuracy, and as much again for the reward model's card."""

    @model_validator(mode="after")
    def _file_goes_with_by(self) -> Label:
        if (self.by == "file") != (self.file is not None):
            raise ValueError("file goes with by: file, and only with it")
        return self

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """The panel and gold know the synthetic world alone."""
        if self.by in ("panel", "gold") and not plan.is_synthetic and plan.last("data") is not None:
            raise ConfigError(
                f"stages.{step.name}.by", f"{self.by} exists for data.source synthetic only; set by: file"
            )

    def run(self, bench: Bench) -> None:
        """Chooses, asks, splits."""
        from lodestar.data.corpus import split_families
        from lodestar.data.files import write_feedback
        from lodestar.errors import DataError
        from lodestar.files import read_jsonl, write_atomically
        from lodestar.labelling.choose import RandomPairs
        from lodestar.labelling.port import Asked

        samples = read_jsonl(bench.take("samples") / "samples.jsonl")
        seed = bench.seed_of(bench.step.name)
        questions = RandomPairs().choose(samples, self.budget or len(samples), seed)
        bench.progress.start(bench.step.name, len(questions))
        asked = Asked(seed, Path(self.file) if self.file else None, bench.unfinished)
        answers = _labellers()[self.by](asked).label(questions, bench.progress.advance)
        splits = split_families((row.prompt for row in answers), self.held_out_fraction, seed)
        blank = sum(not reply["text"].strip() for row in samples for reply in row["replies"])
        counts = {"questions": len(questions), "answers": len(answers), "blank_replies": blank}
        for split in ("train", "held_out", "evaluation"):
            rows = [row for row in answers if splits[row.prompt] == split]
            if not rows:
                raise DataError(
                    bench.make("feedback") / f"{split}.jsonl",
                    f"none of {len(answers)} answers is left for it; sample more prompts, or raise held_out_fraction",
                )
            write_feedback(bench.make("feedback") / f"{split}.jsonl", rows)
            counts[f"feedback.{split}"] = len(rows)
        write_atomically(bench.make("figures") / "label.json", json.dumps({"by": self.by, **counts}, indent=1))
        bench.progress.metrics({name: float(count) for name, count in counts.items()})


def _labellers() -> Mapping[str, Callable[[Asked], Labeller]]:
    from lodestar.labelling.file import AnswerFile
    from lodestar.labelling.panel import Gold, Panel

    return {"panel": Panel, "gold": Gold, "file": AnswerFile}
