"""Best of n as data: of n samples per prompt the one that the reward likes best becomes a demonstration.

SFT on these is one step of expert iteration (Anthony et al. 2017, in the form of Dubois et al. 2023, AlpacaFarm). Their
distribution is log n − (n − 1)/n nats at most from the sampled policy's (Beirami et al. 2024).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage

if TYPE_CHECKING:
    from lodestar.stages.scored import ScoredReply


class BestOfN(Stage):
    """Picks, and splits by prompt. A reply that was cut off or is blank shows nobody how to answer and is not picked; a
    prompt with none else is left out and counted."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {"samples": "samples", "reward": "reward_model"}
    makes: ClassVar[Mapping[str, Kind]] = {"demonstrations": "demonstrations", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"reward": Call("reward", "reward")}

    n: int | None = Field(default=None, ge=1)
    """Samples of each prompt to pick from, the first ones; unset: all there are."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of prompts kept apart for the held-out loss."""

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """There must be n samples to pick from."""
        made = plan.maker(step.inputs["samples"][0])
        there = getattr(made.stage, "n", None) if made is not None and made.kind == "sample" else None
        if self.n is not None and there is not None and self.n > there:
            raise ConfigError(
                f"stages.{step.name}.n", f"is {self.n}, and {made and made.name} makes {there} of each prompt"
            )

    def run(self, bench: Bench) -> None:
        """Scores, picks, splits."""
        from lodestar.data.files import write_jsonl
        from lodestar.errors import DataError
        from lodestar.files import write_atomically
        from lodestar.records import Demonstration
        from lodestar.stages.scored import held_out, scored_samples

        rows = [row[: self.n] for row in scored_samples(bench)]
        if self.n is not None and min(map(len, rows)) < self.n:
            raise DataError(bench.take("samples"), f"holds fewer than n = {self.n} samples of a prompt")
        picked = [best for row in rows if (best := pick(row)) is not None]
        apart = held_out((one.prompt for one in picked), self.held_out_fraction, bench.seed_of(bench.step.name))
        bench.progress.start(bench.step.name, len(rows))
        for split in ("train", "held_out"):
            kept = [one for one in picked if (one.prompt in apart) == (split == "held_out")]
            if not kept:
                raise DataError(
                    bench.make("demonstrations") / f"{split}.jsonl",
                    f"{len(picked)} of {len(rows)} prompts have a reply that ended by itself, which leaves none for "
                    "it; sample more prompts, or raise the sampling stage's max_tokens",
                )
            shown = [Demonstration(one.prompt, one.text, one.id) for one in kept]
            write_jsonl(bench.make("demonstrations") / f"{split}.jsonl", shown)
        bench.progress.advance(len(rows))
        found = figures(rows, picked)
        if found["left_out"]:
            bench.progress.say(f"{found['left_out']} of {len(rows)} prompts are left out: no reply ended by itself")
        write_atomically(bench.make("figures") / "best_of_n.json", json.dumps(found, indent=1))
        bench.progress.metrics({name: float(value) for name, value in found.items()})


def pick(replies: Sequence[ScoredReply]) -> ScoredReply | None:
    """Of the replies that ended and say something the one of the highest score; None where there is none."""
    from lodestar.evaluation import best_of_n

    whole = [reply for reply in replies if reply.ended and reply.text.strip()]
    if not whole:
        return None
    return best_of_n([[reply.score for reply in whole]], [whole], len(whole))[0]


def figures(rows: Sequence[Sequence[ScoredReply]], picked: Sequence[ScoredReply]) -> dict[str, Any]:
    """What picking cost and gave: ``score`` of all samples, ``best_score`` of those that were kept, both means."""
    from lodestar.evaluation import best_of_n_kl

    replies = [reply for row in rows for reply in row]
    n = min(map(len, rows))
    return {
        "n": n,
        "prompts": len(rows),
        "left_out": len(rows) - len(picked),
        "tokens": sum(reply.tokens for reply in replies),
        "score": sum(reply.score for reply in replies) / len(replies),
        "best_score": sum(reply.score for reply in picked) / len(picked),
        "kl_at_most": best_of_n_kl(n),
    }
