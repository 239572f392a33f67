"""What people's answers taught: cross-validated accuracy on their own answers, and what changed in the samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage
from lodestar.stages.evaluate import DEFAULT_TOKENS, ancestor

if TYPE_CHECKING:
    from lodestar.asking import Reply
    from lodestar.records import Comparison

SPLITS = ("train", "held_out", "evaluation")


class Taught(Stage):
    """For few answers, of which none can be spared: every one is held out once."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "against": "model",
        "feedback": "feedback",
        "reward": "reward_model",
        "prompts": "prompts",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {
        "policy": Call("policy", "policy"),
        "against": Call("policy", "against"),
        "reward": Call("reward", "reward"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})

    folds: int = Field(default=5, ge=3)
    """Of the cross-validation; never more than there are judged prompts."""
    prompts: int = Field(default=128, ge=1)
    """Held-out prompts that both models answer."""

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """Compared against the model from which training by the reward began."""
        return (ancestor(plan, inputs["policy"][0]) or None) if port == "against" else None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """The reward model is one that a stage trains from a language model."""
        maker = plan.maker(step.inputs["reward"][0]) if "reward" in step.inputs else None
        if maker is None or maker.kind != "reward" or "policy" not in maker.inputs:
            raise ConfigError(f"stages.{step.name}", "needs a reward stage before it that trains on people's answers")

    def run(self, bench: Bench) -> None:
        """Writes figures/taught.json, figures/samples.jsonl and figures/taught.html."""
        from lodestar.data.files import read_feedback
        from lodestar.files import write_atomically, write_jsonl
        from lodestar.report.taught import changed_words, sentence, write_taught
        from lodestar.train.crossvalidation import cross_validate

        rows = [row for split in SPLITS for row in read_feedback(bench.take("feedback") / f"{split}.jsonl")]
        maker = bench.plan.maker(bench.step.inputs["reward"][0])
        assert maker is not None  # see check
        start = bench.store.path(maker.inputs["policy"][0])
        bench.progress.start(bench.step.name, self.folds + 2 * self.prompts)
        judged, accuracy = cross_validate(
            rows,
            maker.stage,  # type: ignore[arg-type]  # a Reward, which is a RewardTrainingConfig
            bench.config.model,
            start=start,
            tokenizer=start,
            state=bench.unfinished,
            folds=self.folds,
            seed=bench.seed,
            progress=bench.progress,
        )
        prompts, before, after = asyncio.run(self._both(bench))
        found = {
            "run": bench.config.name,
            "answers": len(rows),
            "folds": self.folds,
            "accuracy": accuracy,
            "prompts": len(prompts),
            "score": _means(before, after, lambda reply: reply.score),
            "words": _means(before, after, lambda reply: len(reply.text.split())),
            "changed": changed_words([one.text for one in before], [one.text for one in after]),
            "judged": [_told(row, difference) for row, difference in judged],
        }
        samples = [
            {"prompt": prompt, "before": asdict(old), "after": asdict(new)}
            for prompt, old, new in zip(prompts, before, after, strict=True)
        ]
        figures = bench.make("figures")
        write_jsonl(figures / "samples.jsonl", samples)
        write_atomically(figures / "taught.json", json.dumps(found, indent=1, allow_nan=False))
        write_taught(figures / "taught.html", found, samples)
        bench.progress.say(sentence(accuracy))

    async def _both(self, bench: Bench) -> tuple[list[str], list[Reply], list[Reply]]:
        """The prompts, and each model's reply to every one."""
        from lodestar.asking import Asking, admitted
        from lodestar.data.files import read_prompts
        from lodestar.stages.sample import encoded

        prompts = encoded(bench, read_prompts(bench.take("prompts") / "evaluation.jsonl")[: self.prompts])
        tokens = bench.plan.response_tokens or DEFAULT_TOKENS
        sides: list[list[Reply]] = []
        for fleet in ("against", "policy"):
            in_flight = admitted(bench.config.services.policy, picks=fleet == "policy")
            asking = Asking(
                bench.servers[fleet],
                bench.servers["reward"],
                tokens,
                seed=bench.seed,
                tls=bench.listening.tls,
                in_flight=in_flight,
            )
            several = await asking.replies(prompts, "taught", progress=bench.progress.advance)
            sides.append([reply for (reply,) in several])
        before, after = sides
        return [prompt.text for prompt in prompts], before, after


def _means(before: Sequence[Reply], after: Sequence[Reply], of: Any) -> dict[str, float]:
    return {name: fmean(of(reply) for reply in side) for name, side in (("before", before), ("after", after))}


def _told(row: Comparison, difference: float) -> dict[str, str]:
    """A comparison in words, the preferred reply first."""
    first, second = row.completions if row.label >= 0.5 else row.completions[::-1]
    if row.label == 0.5:
        return {"prompt": row.prompt, "preferred": first, "over": f"equally good: {second}", "says": "a tie"}
    agrees = (difference > 0) == (row.label > 0.5)
    return {"prompt": row.prompt, "preferred": first, "over": second, "says": "agrees" if agrees else "disagrees"}
