"""Evaluation: did the model become better than the one it started from, on prompts that no stage has seen, and did it
learn anything that no sharpening, filtering or picking of that model gives?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lodestar.config.rewards import aspects_of
from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.labelling.options import PeopleOptions
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage
from lodestar.rivals import BEST_OF, TEMPERATURES, Sampler, Take
from lodestar.stages.ppo import check_room

if TYPE_CHECKING:
    from lodestar.asking import Asking, Judge, Reply
    from lodestar.records import Prompt

DEFAULT_TOKENS = 64


class Evaluate(Stage):
    """Samples both models on held-out prompts and judges the replies: win rates, and the rivals that need no PPO."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "against": "model",
        "filtered": "rival",
        "previous": "model",
        "reward": "reward_model",
        "prompts": "prompts",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {
        "policy": Call("policy", "policy"),
        "against": Call("policy", "against"),
        "reference": Call("reference", "against"),
        "filtered": Call("policy", "filtered"),
        "previous": Call("policy", "previous"),
        "reward": Call("reward", "reward"),
        "feedback": Call("feedback"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"against", "filtered", "previous", "tokenizer"})

    prompts: int | None = Field(default=None, ge=1)
    """Held-out prompts; unset takes all that the data stage kept (data.evaluation_rows)."""
    best_of: tuple[int, ...] = (2, 4, BEST_OF)
    """n of best-of-n sampling from the model compared against, ranked by the reward."""
    temperatures: tuple[float, ...] = TEMPERATURES
    """At which the model compared against is sampled too, beside 1 and greedy."""
    judge: Literal["gold", "reward"] | None = None
    """gold: the synthetic world's hidden reward; reward: the one that was trained on (how far training got, not if the
    model is better). Unset: gold where there is one."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Response tokens at most; unset: as many as the stage that samples the longest."""
    previous: bool = False
    """Compare with the policy of the round before too; with the model that rounds began from in the first."""

    people: PeopleOptions | None = None
    """Ask people too which reply is better, the policy's or that of the model compared against: where and how; ``{}``
    is a page that the run starts itself. The stage waits for them."""
    people_prompts: int = Field(default=50, ge=1)
    """Held-out prompts that people see, the first ones."""

    @model_validator(mode="after")
    def _people_compare(self) -> Evaluate:
        if self.people is not None and self.people.form != "pair":
            raise ValueError("people.form must be pair: a win rate is of comparisons")
        return self

    def wants(self, fleet: str) -> bool:
        """A page of the run's own, where people are asked and have none."""
        return fleet != "feedback" or (self.people is not None and self.people.address is None)

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
        """Prompts and replies must fit the model; gold is of the synthetic world alone, the round before of rounds."""
        check_room(run, step, plan, self.max_tokens or plan.response_tokens or DEFAULT_TOKENS)
        if self.previous and not plan.of_round_before(step.inputs["policy"][0]):
            raise ConfigError(
                f"stages.{step.name}.previous",
                f"{step.inputs['policy'][0]} is of no round, or nothing made a model before it; leave previous out",
            )
        if self.people is not None and "against" not in step.inputs:
            raise ConfigError(
                f"stages.{step.name}.people", "compare two models, and there is one; set use: {against: STAGE/policy}"
            )
        if self.judge == "gold" and not plan.is_synthetic:
            raise ConfigError(
                f"stages.{step.name}.judge", "gold exists for data.source synthetic only; leave it out, or set reward"
            )

    def run(self, bench: Bench) -> None:
        """Writes figures/samples.jsonl and figures/evaluation.json."""
        from lodestar.breakdown import broken_down
        from lodestar.files import write_atomically, write_jsonl

        table = Table(self, bench)
        found: dict[str, Any] = {"judge": table.judge}
        if bench.takes("against"):
            found |= asyncio.run(table.rivals(self.temperatures, self.best_of)) | {"method": table.method}
            before, own = table.plain["against"], [replace(one, step=_steps(bench)) for one in table.plain["policy"]]
            found |= {"win_rate": table.rate(own, before), "reward_after": fmean(reply.score for reply in own)}
            found |= broken_down(table.prompts, own, before, table.judge)
            bench.progress.metrics({"win_rate": found["win_rate"]["value"]})
            shown = {"before": before, "after": own}
        else:
            before = own = table.replies("policy", "before")
            shown = {"before": before}
        if self.people is not None:
            found["people"] = self._by_people(bench, self.people, table.prompts, own, before)
        found["reward_before"] = fmean(reply.score for reply in before)
        if table.aspects:
            found["aspects"] = {
                name: {side: fmean(one.aspects[name] for one in replies) for side, replies in shown.items()}
                for name in table.aspects
            }
        if self.previous:
            last = table.replies("previous", "previous") if bench.takes("previous") else before
            found["win_rate_previous"] = table.rate(own, last)
            shown["previous"] = last
        rows = [
            {"id": prompt.id, "prompt": prompt.text} | {name: asdict(replies[i]) for name, replies in shown.items()}
            for i, prompt in enumerate(table.prompts)
        ]
        figures = bench.make("figures")
        write_jsonl(figures / "samples.jsonl", rows)
        write_atomically(figures / "evaluation.json", json.dumps(found, indent=1, allow_nan=False))

    def _by_people(
        self,
        bench: Bench,
        options: PeopleOptions,
        prompts: Sequence[Prompt],
        own: Sequence[Reply],
        other: Sequence[Reply],
    ) -> dict[str, Any]:
        """The win rate by people's judgement."""
        from lodestar.labelling.people import People
        from lodestar.labelling.port import Asked
        from lodestar.labelling.versus import pairs_of, versus

        sides = [[row.text for row in rows][: self.people_prompts] for rows in (prompts, own, other)]
        questions = pairs_of(bench.unfinished / "compared.json", *sides)
        asked = Asked.by(bench, people=options)
        bench.progress.start(f"{bench.step.name}: people", len(questions) * options.overlap)
        return versus(questions, People(asked), bench.progress.advance)


class Table:
    """Where contestants sit: the prompts, the judge, and everybody's replies through the fleets that serve them."""

    def __init__(self, options: Evaluate, bench: Bench) -> None:
        from lodestar.data.files import read_prompts
        from lodestar.stages.sample import encoded

        self.judge: Judge = options.judge or ("gold" if bench.plan.is_synthetic else "reward")
        rows = read_prompts(bench.take("prompts") / "evaluation.jsonl")[: options.prompts]
        # Their ids are for the reference, which may lack the policy's control tokens; everybody else gets text.
        self.prompts: list[Prompt] = encoded(bench, rows, "against" if bench.takes("against") else "policy")
        self.aspects = aspects_of(bench.config.services.reward.sources)
        self._tokens = options.max_tokens or bench.plan.response_tokens or DEFAULT_TOKENS
        self._bench = bench
        self._picked_of = bench.config.services.policy.best_of
        self.method = method_of(bench.plan, bench.step, self._picked_of)
        self.plain: dict[str, list[Reply]] = {}
        """What each fleet that ``rivals`` asked said at temperature 1, first of all."""
        several = 1
        if bench.takes("against"):
            several = 4 + len(options.temperatures) + bool(options.best_of) + bench.takes("filtered")
        several += bench.takes("previous")
        bench.progress.start(bench.step.name, several * len(self.prompts))

    def replies(self, fleet: str, purpose: str) -> list[Reply]:
        """A fleet's judged reply to every prompt."""
        replies = self._asking(fleet).replies(self.prompts, purpose, progress=self._bench.progress.advance)
        return [one for (one,) in asyncio.run(replies)]

    def rate(self, replies: Sequence[Reply], others: Sequence[Reply]) -> dict[str, Any]:
        """The win rate of replies against others to the same prompts, by the judge of this table."""
        from lodestar.evaluation import win_rate

        ours, theirs = ([one.judged_by(self.judge) for one in side] for side in (replies, others))
        return asdict(win_rate(ours, theirs))

    async def rivals(self, temperatures: Sequence[float], best_of: Sequence[int]) -> dict[str, Any]:
        """What lodestar.rivals says of the policy, the model it is compared against, and others."""
        from lodestar import rivals

        start = await rivals.play_start(self._sampler("against"), temperatures=temperatures, best_of=best_of)
        policy = await rivals.play_policy(self._sampler("policy"), picked_of=self._picked_of)
        filtered = await rivals.play_once(self._sampler("filtered")) if self._bench.takes("filtered") else None
        return rivals.figures(policy, start, filtered, method=self.method)

    def _sampler(self, fleet: str) -> Sampler:
        """Takes of what a fleet serves."""
        references, progress = self._bench.servers["reference"], self._bench.progress.advance
        asking = self._asking(fleet)

        async def sample(temperature: float, n: int) -> list[list[Take]]:
            purpose = f"{fleet} at {temperature:g}" + ("" if n == 1 else f", {n} of each")
            made = await asking.generations(self.prompts, purpose, n, temperature, progress)
            replies = await asking.judged(self.prompts, made)
            if n == temperature == 1:
                self.plain[fleet] = [one for (one,) in replies]
            told = {"references": references, "judge": self.judge, "greedy": temperature == 0}
            return await asking.takes(self.prompts, made, replies, **told)  # type: ignore[arg-type]

        return sample

    def _asking(self, fleet: str) -> Asking:
        from lodestar.asking import Asking, admitted

        servers, bench = self._bench.servers, self._bench
        return Asking(
            servers[fleet],
            servers["reward"],
            self._tokens,
            seed=bench.seed,
            tls=bench.listening.tls,
            in_flight=admitted(bench.config.services.policy, picks=fleet == "policy"),
            aspects=self.aspects,
        )


def method_of(plan: Plan, step: Step, best_of: int = 1) -> str:
    """How the policy that an evaluation judges came about, in words: PPO, expert iteration, best of 16."""
    (policy,), picked = step.inputs["policy"], f"best of {best_of}" if best_of > 1 else ""
    if step.inputs.get("against") == (policy,):
        return picked or "the policy"
    maker = plan.maker(policy)
    shown = plan.maker(maker.inputs["demonstrations"][0]) if maker and "demonstrations" in maker.inputs else None
    by_data = {"best_of_n": "expert iteration", "critique": "constitutional AI"}.get(shown.kind if shown else "", "")
    name = (maker.stage.method if maker else "") or by_data or "the policy"
    return f"{name}, {picked}" if picked else name


def ancestor(plan: Plan, model: str) -> str:
    """The model from which a model's training by a reward began; empty where it was not trained by one."""
    start = model
    while (maker := plan.maker(start)) is not None and "reference" in maker.inputs:
        (start,) = maker.inputs["reference"]
    return "" if start == model else start


def _steps(bench: Bench) -> int:
    """PPO steps behind the policy: a server that loads it from a folder calls it step 0."""
    from lodestar.files import read_jsonl

    maker = bench.plan.maker(bench.step.inputs["policy"][0])
    metrics = bench.store.path(f"{maker.name}/figures") / "metrics.jsonl" if maker else None
    return int(read_jsonl(metrics)[-1]["step"]) if metrics and metrics.exists() else 0
