"""DPO: the policy from feedback at once, without a reward model and without sampling (Rafailov et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lodestar.config.dpo import DpoConfig
from lodestar.recipe.plan import Plan
from lodestar.recipe.stage import Bench, Call, Kind, Stage


class Dpo(Stage, DpoConfig):
    """Asks the reference once for the log-prob of every completion, then fits the policy's implied reward to what
    people said of them."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "reference": "model",
        "feedback": "feedback",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"reference": Call("reference", "reference")}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})
    method: ClassVar[str] = "DPO"

    feedback: Literal["all", "newest"] = "all"
    """all: every round's feedback so far; newest: that of the last round alone."""

    def gathers(self) -> frozenset[str]:
        """All feedback, or the newest."""
        return frozenset({"feedback"} if self.feedback == "all" else ())

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """The reference is the model that this stage starts from."""
        return inputs["policy"][0] if port == "reference" else None

    def run(self, bench: Bench) -> None:
        """See lodestar.train.dpo."""
        from lodestar.train import train_dpo
        from lodestar.train.fit import write_fit
        from lodestar.train.reference import ReferenceLogProbs

        reference = ReferenceLogProbs(
            bench.servers["reference"],
            bench.root / "cache" / "reference",
            call_tokens=bench.config.services.reference.batch_tokens,
            alone=bench.config.deterministic,
            tls=bench.listening.tls,
        )
        fitted = train_dpo(
            self,
            bench.config.model,
            feedback=[folder for folder in bench.take_all("feedback") if any(folder.iterdir())],
            start=bench.take("policy"),
            tokenizer=bench.tokenizer("policy"),
            reference=reference,
            output=bench.make("policy"),
            state=bench.unfinished / "state.pt",
            seed=bench.seed,
            progress=bench.progress,
        )
        write_fit(bench.make("figures"), fitted)
