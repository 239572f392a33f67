"""Evaluation: did the model become better than the one it started from, on prompts that no stage has seen?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage

if TYPE_CHECKING:
    from lodestar.asking import Reply

DEFAULT_TOKENS = 64


class Evaluate(Stage):
    """Samples both models on held-out prompts, judges the replies, and takes win rates and best-of-n beside them."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "against": "model",
        "previous": "model",
        "reward": "reward_model",
        "prompts": "prompts",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {
        "policy": Call("policy", "policy"),
        "against": Call("policy", "against"),
        "previous": Call("policy", "previous"),
        "reward": Call("reward", "reward"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"against", "previous"})

    prompts: int | None = Field(default=None, ge=1)
    """Held-out prompts; unset takes all that the data stage kept (data.evaluation_rows)."""
    best_of: tuple[int, ...] = (2, 4, 8)
    """n of best-of-n sampling from the model compared against, ranked by the reward."""
    judge: Literal["gold", "reward"] | None = None
    """gold: the synthetic world's hidden reward; reward: the one that was trained on (how far training got, not if the
    model is better). Unset: gold where there is one."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Response tokens at most; unset: as many as the stage that samples the longest."""
    temperature: float = Field(default=1.0, gt=0)
    """τ of all models."""
    previous: bool = False
    """Compare with the policy of the round before too; with the model that rounds began from in the first."""

    def ports(self, run: RunConfig) -> Mapping[str, tuple[Kind, ...]]:
        """The round before's policy only where it is asked for."""
        return {port: kinds for port, kinds in super().ports(run).items() if port != "previous" or self.previous}

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """Compared against the model from which training by a reward began: the reference's reference's … reference."""
        match port:
            case "against":
                return ancestor(plan, inputs["policy"][0])
            case "previous":  # the same model is not served twice
                found = plan.of_round_before(inputs["policy"][0])
                return "" if (found,) == inputs.get("against") else found
        return None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """Gold exists in the synthetic world alone, and the round before in rounds."""
        if self.previous and not plan.of_round_before(step.inputs["policy"][0]):
            raise ConfigError(
                f"stages.{step.name}.previous",
                f"{step.inputs['policy'][0]} is of no round, or nothing made a model before it; leave previous out",
            )
        if self.judge == "gold" and not plan.is_synthetic:
            raise ConfigError(
                f"stages.{step.name}.judge", "gold exists for data.source synthetic only; leave it out, or set reward"
            )

    def run(self, bench: Bench) -> None:
        """Writes figures/samples.jsonl and figures/evaluation.json."""
        from lodestar.asking import Asking
        from lodestar.data.files import read_prompts
        from lodestar.files import write_atomically, write_jsonl

        prompts = read_prompts(bench.take("prompts") / "evaluation.jsonl")[: self.prompts]
        judge = self.judge or ("gold" if bench.plan.is_synthetic else "reward")
        tokens = self.max_tokens or bench.plan.response_tokens or DEFAULT_TOKENS
        most = max(self.best_of, default=0)
        models = 1 + sum(map(bench.takes, ("against", "previous")))
        bench.progress.start(bench.step.name, models * len(prompts))

        def replies(fleet: str, purpose: str, n: int = 1) -> list[list[Reply]]:
            servers = bench.servers[fleet], bench.servers["reward"]
            asking = Asking(*servers, tokens, self.temperature, bench.seed, bench.listening.tls)
            return asyncio.run(asking.replies(prompts, purpose, n, progress=bench.progress.advance))

        several = replies("against" if bench.takes("against") else "policy", "before", 1 + most)
        before, others = [made[0] for made in several], [made[1:] for made in several]
        found: dict[str, Any] = {
            "judge": judge,
            "reward_before": fmean(reply.score for reply in before),
            **_best_of_n(self.best_of, others, [reply.judged_by(judge) for reply in before], judge),
        }
        rows = [{"id": p.id, "prompt": p.text, "before": asdict(b)} for p, b in zip(prompts, before, strict=True)]
        own = before
        if bench.takes("against"):
            own = [replace(one, step=_steps(bench)) for (one,) in replies("policy", "after")]
            found |= {"win_rate": _rate(own, before, judge), "reward_after": fmean(reply.score for reply in own)}
            rows = [row | {"after": asdict(one)} for row, one in zip(rows, own, strict=True)]
            bench.progress.metrics({"win_rate": found["win_rate"]["value"]})
        if self.previous:
            last = [one for (one,) in replies("previous", "previous")] if bench.takes("previous") else before
            found["win_rate_previous"] = _rate(own, last, judge)
            rows = [row | {"previous": asdict(one)} for row, one in zip(rows, last, strict=True)]
        figures = bench.make("figures")
        write_jsonl(figures / "samples.jsonl", rows)
        write_atomically(figures / "evaluation.json", json.dumps(found, indent=1))


def _rate(replies: Sequence[Reply], baseline: Sequence[Reply], judge: Any) -> dict[str, Any]:
    from lodestar.evaluation import win_rate

    return asdict(win_rate([one.judged_by(judge) for one in replies], [one.judged_by(judge) for one in baseline]))


def ancestor(plan: Plan, model: str) -> str:
    """The model from which a model's training by a reward began; empty where it was not trained by one."""
    start = model
    while (maker := plan.maker(start)) is not None and "reference" in maker.inputs:
        (start,) = maker.inputs["reference"]
    return "" if start == model else start


def _best_of_n(
    wanted: Sequence[int], replies: Sequence[Sequence[Any]], baseline: Sequence[float], judge: Any
) -> dict[str, Any]:
    """Win rates of best-of-n against the model's own single replies, and the scores it reaches."""
    from lodestar.evaluation import best_of_n, win_rate

    scores = [[reply.score for reply in several] for several in replies]
    judged = [[reply.judged_by(judge) for reply in several] for several in replies]
    return {
        "best_of_n": {str(n): asdict(win_rate(best_of_n(scores, judged, n), baseline)) for n in wanted},
        "best_of_n_score": {str(n): fmean(best_of_n(scores, scores, n)) for n in wanted},
    }


def _steps(bench: Bench) -> int:
    """PPO steps behind the policy: a server that loads it from a folder calls it step 0."""
    from lodestar.files import read_jsonl

    maker = bench.plan.maker(bench.step.inputs["policy"][0])
    metrics = bench.store.path(f"{maker.name}/figures") / "metrics.jsonl" if maker else None
    return int(read_jsonl(metrics)[-1]["step"]) if metrics and metrics.exists() else 0
