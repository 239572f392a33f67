"""Binary FeedME: SFT on the replies that feedback calls good (Dubois et al. 2023, AlpacaFarm, section 4; OpenAI's own
FeedME takes samples that people rated best)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar, Literal

from lodestar.config.training import TrainingConfig
from lodestar.recipe.stage import Bench, Kind, Stage


class Feedme(Stage, TrainingConfig):
    """SFT from the model before it. Of a comparison the winner is good, of ratings what is above the middle
    (lodestar.preference.approval)."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "feedback": "feedback",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})
    method: ClassVar[str] = "FeedME"

    feedback: Literal["all", "newest"] = "all"
    """all: every round's feedback so far; newest: that of the last round alone."""

    def gathers(self) -> frozenset[str]:
        """All feedback, or the newest."""
        return frozenset({"feedback"} if self.feedback == "all" else ())

    def run(self, bench: Bench) -> None:
        """Keeps the good replies, trains on them."""
        from lodestar.data.files import write_jsonl
        from lodestar.errors import DataError
        from lodestar.files import write_atomically
        from lodestar.records import Demonstration
        from lodestar.stages.sft import fine_tune
        from lodestar.stages.verdicts import verdicts_of

        found, good = verdicts_of(bench), bench.unfinished / "good"
        for split, verdicts in found.items():
            kept = [Demonstration(one.prompt, one.completion) for one in verdicts if one.good]
            if not kept:
                raise DataError(
                    bench.take_all("feedback")[-1] / f"{split}.jsonl",
                    f"none of the {len(verdicts)} replies that its feedback tells apart is good: every comparison is "
                    "tied, or every rating low",
                )
            write_jsonl(good / f"{split}.jsonl", kept)
        counts = {split: sum(one.good for one in verdicts) for split, verdicts in found.items()}
        write_atomically(bench.make("figures") / "verdicts.json", json.dumps({"good": counts}))
        fine_tune(self, bench, good)
