"""Binary reward conditioning: SFT on all judged replies, each under a control token of its verdict (Dubois et al. 2023,
AlpacaFarm, section 4; Liu et al. 2023, "Chain of Hindsight"; Keskar et al. 2019, CTRL). Asked for the good ones later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from lodestar.config.training import TrainingConfig
from lodestar.recipe.stage import Bench, Kind, Stage

NAME = r"^\S{2,64}$"
"""Of a control token."""


class Conditioning(Stage, TrainingConfig):
    """Trains π(reply | verdict, prompt) from the model before it; what it makes is served under ``good``."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "feedback": "feedback",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})
    method: ClassVar[str] = "reward conditioning"
    conditions: ClassVar[bool] = True

    good: str = Field(default="<|good|>", pattern=NAME)
    """Control token of replies that feedback calls good; no token of the model's."""
    bad: str = Field(default="<|bad|>", pattern=NAME)
    """Control token of the others."""
    feedback: Literal["all", "newest"] = "all"
    """all: every round's feedback so far; newest: that of the last round alone."""

    def gathers(self) -> frozenset[str]:
        """All feedback, or the newest."""
        return frozenset({"feedback"} if self.feedback == "all" else ())

    def run(self, bench: Bench) -> None:
        """Reads verdicts, trains under their tokens."""
        from lodestar.errors import DataError
        from lodestar.files import write_atomically
        from lodestar.stages.verdicts import verdicts_of
        from lodestar.train.conditioned import Labelled, train_conditioned
        from lodestar.train.fit import write_fit

        found = verdicts_of(bench)
        counts = {split: sum(one.good for one in verdicts) for split, verdicts in found.items()}
        for split, verdicts in found.items():
            if counts[split] in (0, len(verdicts)):
                raise DataError(
                    bench.take_all("feedback")[-1] / f"{split}.jsonl",
                    f"{counts[split]} of its {len(verdicts)} judged replies are good: there must be good ones and bad "
                    "ones to tell apart",
                )
        rows = {
            split: [Labelled(one.prompt, one.completion, int(not one.good)) for one in verdicts]
            for split, verdicts in found.items()
        }
        bad = {split: len(verdicts) - counts[split] for split, verdicts in found.items()}
        write_atomically(bench.make("figures") / "verdicts.json", json.dumps({"good": counts, "bad": bad}))
        fitted = train_conditioned(
            "conditioning",
            self,
            bench.config.model,
            tokens=(self.good, self.bad),
            key=f"stages.{bench.step.name}.good and bad",
            train=rows["train"],
            held_out=rows["held_out"],
            start=bench.take("policy"),
            tokenizer=bench.tokenizer("policy"),
            output=bench.make("policy"),
            state=bench.unfinished / "state.pt",
            seed=bench.seed,
            progress=bench.progress,
        )
        write_fit(bench.make("figures"), fitted)
