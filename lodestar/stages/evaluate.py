"""Evaluation: did the model become better than the one it started from, on prompts that no stage has seen?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage

DEFAULT_TOKENS = 64


class Evaluate(Stage):
    """Samples both models on held-out prompts, judges the replies, and takes win rates and best-of-n beside them."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "against": "model",
        "reward": "reward_model",
        "prompts": "prompts",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {
        "policy": Call("policy", "policy"),
        "against": Call("policy", "against"),
        "reward": Call("reward", "reward"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"against"})

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
    """τ of both models."""

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """Compared against the model from which training by a reward began: the reference's reference's … reference."""
        return ancestor(plan, inputs["policy"][0]) if port == "against" else None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """Gold exists in the synthetic world alone."""
        if self.judge == "gold" and not plan.is_synthetic:
            raise ConfigError(
                f"stages.{step.name}.judge", "gold exists for data.source synthetic only; leave it out, or set reward"
            )

    def run(self, bench: Bench) -> None:
        """Writes figures/samples.jsonl and figures/evaluation.json."""
        from lodestar.asking import Asking
        from lodestar.data.files import read_prompts
        from lodestar.evaluation import win_rate
        from lodestar.files import write_atomically, write_jsonl

        prompts = read_prompts(bench.take("prompts") / "evaluation.jsonl")[: self.prompts]
        judge = self.judge or ("gold" if bench.plan.is_synthetic else "reward")
        tokens = self.max_tokens or bench.plan.response_tokens or DEFAULT_TOKENS
        most = max(self.best_of, default=0)
        bench.progress.start(bench.step.name, 2 * len(prompts) if bench.takes("against") else len(prompts))

        def asking(fleet: str) -> Asking:
            servers = bench.servers[fleet], bench.servers["reward"]
            return Asking(*servers, tokens, self.temperature, bench.seed, bench.listening.tls)

        base = asking("against" if bench.takes("against") else "policy")
        replies = asyncio.run(base.replies(prompts, "before", 1 + most, progress=bench.progress.advance))
        before, others = [several[0] for several in replies], [several[1:] for several in replies]
        found: dict[str, Any] = {
            "judge": judge,
            "reward_before": fmean(reply.score for reply in before),
            **_best_of_n(self.best_of, others, [reply.judged_by(judge) for reply in before], judge),
        }
        rows = [{"id": p.id, "prompt": p.text, "before": asdict(b)} for p, b in zip(prompts, before, strict=True)]
        if bench.takes("against"):
            made = asyncio.run(asking("policy").replies(prompts, "after", progress=bench.progress.advance))
            after = [replace(one, step=_steps(bench)) for (one,) in made]
            rate = win_rate([one.judged_by(judge) for one in after], [one.judged_by(judge) for one in before])
            found |= {"win_rate": asdict(rate), "reward_after": fmean(reply.score for reply in after)}
            rows = [row | {"after": asdict(one)} for row, one in zip(rows, after, strict=True)]
            bench.progress.metrics({"win_rate": rate.value})
        figures = bench.make("figures")
        write_jsonl(figures / "samples.jsonl", rows)
        write_atomically(figures / "evaluation.json", json.dumps(found, indent=1))


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
