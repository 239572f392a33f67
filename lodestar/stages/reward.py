"""The reward model: learned from human comparisons, InstructGPT's second step (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lodestar.config.run import RunConfig
from lodestar.config.training import RewardTrainingConfig
from lodestar.recipe.stage import Bench, Kind, Stage


class Reward(Stage, RewardTrainingConfig):
    """A scalar head over a language model's trunk, trained on feedback; its card says what it is worth."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "feedback": "feedback",
        "demonstrations": "demonstrations",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"reward": "reward_model", "figures": "figures"}
    optional: ClassVar[frozenset[str]] = frozenset({"demonstrations", "tokenizer"})

    feedback: Literal["all", "newest"] = "all"
    """all: every round's feedback so far (Bai et al. 2022, Llama 2); newest: that of the last round alone."""

    def ports(self, run: RunConfig) -> Mapping[str, tuple[Kind, ...]]:
        """A trained classifier (``path``) needs no language model."""
        ports = dict(super().ports(run))
        if self.path is not None:
            del ports["policy"]
        return ports

    def gathers(self) -> frozenset[str]:
        """All feedback, or the newest."""
        return frozenset({"feedback"} if self.feedback == "all" else ())

    def run(self, bench: Bench) -> None:
        """See lodestar.train.reward."""
        from lodestar.train import RewardTraining
        from lodestar.train.fit import write_fit

        shown = bench.take("demonstrations") if bench.takes("demonstrations") else None
        training = RewardTraining(
            self,
            bench.config.model,
            feedback=[folder for folder in bench.take_all("feedback") if any(folder.iterdir())],
            demonstrations=shown if shown and any(shown.iterdir()) else None,
            start=bench.take("policy") if bench.takes("policy") else None,
            tokenizer=bench.tokenizer("policy") if bench.takes("policy") else None,
            state=bench.unfinished,
            seed=bench.seed,
            progress=bench.progress,
        )
        write_fit(bench.make("figures"), training.run(bench.make("reward")))
