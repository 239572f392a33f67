"""Quark: quantised reward conditioning (Lu et al. 2022, "Quark: Controllable Text Generation with Reinforced
Unlearning", algorithm 1). A round is sample → quark; the next round samples under the best token.

    sample     explore: n replies per prompt under the best token (the first round's model has none yet: π_0)
    quantise   all replies so far by their reward into K quantiles, each with a control token
    learn      −log π(y|c, x) + β KL(π_0 ‖ π), every quantile equally often
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from lodestar.config.training import TrainingConfig
from lodestar.recipe.plan import Plan
from lodestar.recipe.stage import Bench, Call, Kind, Stage

if TYPE_CHECKING:
    from lodestar.stages.scored import ScoredReply
    from lodestar.train.conditioned import Labelled


class Quark(Stage, TrainingConfig):
    """Quantises samples and learns from them; what it makes is served under the best quantile's token."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "reference": "model",
        "reward": "reward_model",
        "samples": "samples",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"reward": Call("reward", "reward")}
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})
    method: ClassVar[str] = "Quark"
    conditions: ClassVar[bool] = True

    quantiles: int = Field(default=5, ge=2, le=64)
    """K; the paper's is 5."""
    beta: float = Field(default=0.05, ge=0)
    """β of the KL from the reference at every token; the paper's is 0.05 to 0.1."""
    token: str = "<|reward-{}|>"
    """Name of a quantile's control token, {} being its number: 1 is the worst, K the best."""
    samples: Literal["all", "newest"] = "all"
    """all: the pool of every round so far, as in the paper; newest: those of the last round alone."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of prompts kept apart for the held-out loss."""

    @field_validator("token")
    @classmethod
    def _has_a_number(cls, token: str) -> str:
        if token.count("{}") != 1 or any(letter.isspace() for letter in token):
            raise ValueError("must hold {} once, where the quantile's number goes, and no space")
        return token

    def gathers(self) -> frozenset[str]:
        """The whole pool, or the newest samples."""
        return frozenset({"samples"} if self.samples == "all" else ())

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """The reference is π_0: that of the round before, and the start model in the first."""
        if port != "reference":
            return None
        maker = plan.maker(inputs["policy"][0])
        return (maker.inputs["reference"] if maker and maker.kind == "quark" else inputs["policy"])[0]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Control tokens, the best first."""
        return tuple(self.token.format(number) for number in range(self.quantiles, 0, -1))

    def run(self, bench: Bench) -> None:
        """Scores, quantises, learns."""
        from lodestar.files import write_atomically
        from lodestar.stages.scored import scored_samples
        from lodestar.train.conditioned import train_conditioned
        from lodestar.train.fit import write_fit

        pool = [reply for row in scored_samples(bench) for reply in row if reply.ended or reply.text]
        train, held = self._labelled(bench, pool)
        scores = [reply.score for reply in pool]
        found = {"replies": len(pool), "tokens": sum(reply.tokens for reply in pool), "score": sum(scores) / len(pool)}
        write_atomically(bench.make("figures") / "quark.json", json.dumps(found, indent=1))
        fitted = train_conditioned(
            "quark",
            self,
            bench.config.model,
            tokens=self.tokens,
            key=f"stages.{bench.step.name}.token",
            train=train,
            held_out=held,
            start=bench.take("policy"),
            tokenizer=bench.tokenizer("policy"),
            output=bench.make("policy"),
            state=bench.unfinished / "state.pt",
            seed=bench.seed,
            reference=bench.take("reference"),
            beta=self.beta,
            progress=bench.progress,
        )
        write_fit(bench.make("figures"), fitted)

    def _labelled(self, bench: Bench, pool: list[ScoredReply]) -> tuple[list[Labelled], list[Labelled]]:
        from lodestar.errors import DataError
        from lodestar.preference.quantiles import quantised
        from lodestar.stages.scored import held_out
        from lodestar.train.conditioned import Labelled

        quantile = quantised([reply.score for reply in pool], self.quantiles)
        if len(set(quantile)) < 2:
            raise DataError(
                bench.take_all("samples")[-1],
                f"the reward gives all {len(pool)} replies one score: there are no quantiles to tell apart",
            )
        apart = held_out((reply.prompt for reply in pool), self.held_out_fraction, bench.seed_of("quark"))
        rows: tuple[list[Labelled], list[Labelled]] = [], []
        for reply, place in zip(pool, quantile, strict=True):
            labelled = Labelled(reply.prompt, reply.text, self.quantiles - 1 - place, reply.ended)
            rows[reply.prompt in apart].append(labelled)
        if not (rows[0] and rows[1]):
            raise DataError(bench.take_all("samples")[-1], "has too few prompts to keep some apart; sample more")
        return rows
