"""Sampling: n replies per prompt by the served policy, for people or programs to judge (Ouyang et al. 2022, 3.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage
from lodestar.stages.ppo import check_room

if TYPE_CHECKING:
    from lodestar.config.rewards import SourceConfig
    from lodestar.records import Prompt, Rollout
    from lodestar.records import Sample as Sampled


class Sample(Stage):
    """Replies through tickets and workers like any rollout: acked, resumed after a kill, each in the ledger once. Where
    there is a reward model already, they are scored."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "reward": "reward_model",
        "prompts": "prompts",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"samples": "samples", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"policy": Call("policy", "policy"), "reward": Call("reward", "reward")}
    optional: ClassVar[frozenset[str]] = frozenset({"reward", "tokenizer"})
    rolls_out: ClassVar[bool] = True

    n: int = Field(default=4, ge=1)
    """Replies per prompt."""
    prompts: int = Field(default=512, ge=1)
    """Prompts, of those kept for training, in an order of this stage's own."""
    batch: int = Field(default=64, ge=1)
    """Prompts out at once; a killed stage goes on from the last whole batch."""
    max_tokens: int = Field(default=64, ge=1)
    """Response tokens at most."""
    temperature: float = Field(default=1.0, gt=0)
    """τ."""

    @property
    def steps(self) -> int:
        """Batches."""
        return -(-self.prompts // self.batch)

    @property
    def tickets(self) -> int:
        """Of a batch; the last may have fewer."""
        return self.batch

    @property
    def samples_per_prompt(self) -> int:
        """n of each ticket."""
        return self.n

    @property
    def max_staleness(self) -> int:
        """One batch is out while another is taken in."""
        return 1

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """Prompts and replies must fit the model."""
        check_room(run, step, plan, self.max_tokens)

    def run(self, bench: Bench) -> None:
        """Writes samples/samples.jsonl, a line per prompt in the order of tickets, and the ledger to the figures."""
        from lodestar.config.rewards import ensemble_source
        from lodestar.data.files import read_prompts
        from lodestar.errors import ConfigError
        from lodestar.model.loading import vocabulary_size
        from lodestar.queue.redis import RedisLearnerQueue
        from lodestar.rollouts.collector import Collector
        from lodestar.rollouts.incarnation import Incarnation
        from lodestar.rollouts.record import Record
        from lodestar.rollouts.tickets import TicketSchedule

        prompts = encoded(bench, read_prompts(bench.take("prompts") / "ppo.jsonl"))
        if self.prompts > len(prompts):
            raise ConfigError(
                f"stages.{bench.step.name}.prompts",
                f"is {self.prompts}, and there are {len(prompts)}: ask for fewer, or keep more (data.prompt_rows)",
            )
        bench.progress.start(bench.step.name, self.prompts)
        begun = Incarnation.begin(bench.unfinished, bench.root)
        section = bench.config.services.queue
        queue = RedisLearnerQueue(
            str(bench.endpoints.redis), section.outage_seconds, password=section.password(), tls=bench.listening.tls
        )
        schedule = TicketSchedule(
            prompts, self, run=bench.config.name, seed=bench.seed_of(bench.step.name), total=self.prompts, fixed=True
        )
        ensemble = ensemble_source(bench.config.services.reward.sources)
        record = Record(bench.unfinished / "record.json", bench.make("samples"), bench.make("figures"))
        try:
            queue.open(bench.config.name, begun.id, owner=begun.owner, where=begun.where)
            collector = Collector(
                queue,
                schedule,
                incarnation=begun.id,
                outcome="sampled",
                reconcile_seconds=section.reconcile_seconds,
                vocabulary=vocabulary_size(bench.take("policy")),
            )
            bench.progress.advance(min(self.prompts, record.steps * self.batch))
            for number in range(record.steps, self.steps):
                rollouts = collector.collect(number)
                assert rollouts is not None  # nobody gives a batch up
                record.keep([_row(rollout, ensemble) for rollout in rollouts], collector.settle(number))
                bench.progress.advance(len(rollouts))
            queue.erase()
        finally:
            record.close()
            queue.close()
        (bench.make("figures") / "sample.json").write_text(json.dumps(_figures(record.rows())), encoding="utf-8")


def encoded(bench: Bench, prompts: Sequence[Prompt], port: str = "policy") -> list[Prompt]:
    """The prompts with the token ids of a port's model."""
    from lodestar.data.rows import encode_prompts
    from lodestar.model.tokenizers import load_tokenizer

    ids = encode_prompts(load_tokenizer(bench.tokenizer(port)), [prompt.text for prompt in prompts])
    return [replace(prompt, token_ids=tokens) for prompt, tokens in zip(prompts, ids, strict=True)]


def _row(rollout: Rollout, ensemble: SourceConfig | None) -> dict[str, Any]:
    ticket = rollout.ticket
    prompt = ticket.prompt
    row: dict[str, Any] = {"id": prompt.id, "ticket": ticket.id, "prompt": prompt.text}
    if prompt.messages:
        row["messages"] = [asdict(message) for message in prompt.messages]
    if prompt.columns:
        row["columns"] = dict(prompt.columns)
    return row | {"replies": [_reply(sample, ensemble) for sample in rollout.samples]}


def _reply(sample: Sampled, ensemble: SourceConfig | None) -> dict[str, Any]:
    """With what each member of the reward's ensemble says of it, where the reward is one."""
    from lodestar.rewards.combine import member_scores

    reply: dict[str, Any] = {
        "text": sample.text,
        "tokens": len(sample.token_ids),
        "finish_reason": str(sample.finish_reason),
        "score": sample.score,
    }
    if ensemble is not None and sample.score is not None:
        reply["members"] = member_scores(ensemble, sample.score, sample.heads)
    return reply


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How long the replies are, how many ended by themselves, and their scores."""
    replies = [reply for row in rows for reply in row["replies"]]
    scores = [reply["score"] for reply in replies if reply["score"] is not None]
    return {
        "prompts": len(rows),
        "replies": len(replies),
        "tokens": sum(reply["tokens"] for reply in replies) / len(replies),
        "ended": sum(reply["finish_reason"] == "eos" for reply in replies) / len(replies),
        "scores": scores,
    }
