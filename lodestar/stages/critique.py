"""Critique and revision by a constitution: demonstrations from AI feedback (Bai et al. 2022, section 3)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lodestar.config.run import RunConfig
from lodestar.constitution import Aspect, principles
from lodestar.llm.options import MANNER, ReachOptions
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage
from lodestar.stages.ppo import check_room

if TYPE_CHECKING:
    from lodestar.critique import Revised


class CriticOptions(ReachOptions):
    """``critic: {url: …, name: …}``: who criticises and revises, where it is not the policy itself."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> CriticOptions:
        if not self.is_elsewhere:
            raise ValueError("critic needs address or url; without critic the policy criticises itself")
        return self


class Critique(Stage):
    """The policy replies; a critic says by a principle what is wrong and writes the reply anew, round after round, each
    round by a principle that is drawn. The last revision of each prompt becomes its demonstration."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {"policy": "model", "prompts": "prompts"}
    makes: ClassVar[Mapping[str, Kind]] = {"demonstrations": "demonstrations", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {"policy": Call("policy", "policy")}
    manner: ClassVar[Mapping[str, frozenset[str]]] = {"critic": MANNER}

    prompts: int = Field(default=512, ge=1)
    """Prompts, the first of those kept for training."""
    rounds: int = Field(default=2, ge=1)
    """Of critique and revision."""
    aspect: Aspect = "harmless"
    """Whose principles: demonstrations of what is harmless and of what is helpful are made by stages of their own."""
    constitution: str | None = None
    """File of principles (lodestar/constitution.yaml); unset: the one that ships."""
    critic: CriticOptions | None = None
    """Who criticises and revises; unset: the policy."""
    form: Literal["chat", "text"] = "chat"
    """How the policy is asked for critiques and revisions: by its chat template, or as text that it goes on with."""
    max_tokens: int = Field(default=64, ge=1)
    """Of a reply, a critique and a revision, each."""
    temperature: float = Field(default=1.0, gt=0)
    """τ of all three."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of prompts kept apart for the held-out loss."""

    @model_validator(mode="after")
    def _the_critic_says_its_form(self) -> Critique:
        if self.critic is not None and self.form == "text":
            raise ValueError("form is the policy's as a critic; write critic.form")
        return self

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """The constitution must have principles of the aspect, and prompts and replies must fit the model."""
        check_room(run, step, plan, self.max_tokens)
        principles(self.constitution, self.aspect, f"stages.{step.name}")

    def run(self, bench: Bench) -> None:
        """Writes demonstrations, and figures/critiques.jsonl: all that was said of each prompt."""
        from lodestar.asking import admitted
        from lodestar.critique import IN_FLIGHT, Critic
        from lodestar.data.files import read_prompts, write_jsonl
        from lodestar.errors import ConfigError
        from lodestar.files import write_atomically

        name, rows = bench.step.name, read_prompts(bench.take("prompts") / "ppo.jsonl")
        if self.prompts > len(rows):
            raise ConfigError(f"stages.{name}.prompts", f"is {self.prompts}, and there are {len(rows)}: ask for fewer")
        bench.progress.start(name, self.prompts)
        room = max(1, min(2 * IN_FLIGHT, admitted(bench.config.services.policy, picks=False)) // 2)
        cache, tls = bench.root / "cache" / "critic", bench.listening.tls
        critic = Critic(self, bench.servers["policy"], cache, bench.seed_of(name), tls, in_flight=room)
        revised = asyncio.run(critic.revise(rows[: self.prompts], bench.progress.advance))
        self._show(bench, revised)
        write_jsonl(bench.make("figures") / "critiques.jsonl", map(asdict, revised))
        found = _figures(revised, critic.costs)
        write_atomically(bench.make("figures") / "critique.json", json.dumps(found, indent=1))
        if left_out := [one for one in revised if one.why]:
            bench.progress.warn(
                f"{len(left_out)} of {len(revised)} prompts are left out ({name}/figures/critiques.jsonl); the first "
                f"is {left_out[0].id}: {left_out[0].why}"
            )
        bench.progress.metrics({key: float(value) for key, value in found.items() if isinstance(value, int | float)})

    def _show(self, bench: Bench, revised: Sequence[Revised]) -> None:
        """The last revisions as demonstrations, split by prompt."""
        from lodestar.data.files import write_jsonl
        from lodestar.errors import DataError
        from lodestar.records import Demonstration
        from lodestar.stages.scored import held_out

        whole = [one for one in revised if not one.why]
        apart = held_out((one.prompt for one in whole), self.held_out_fraction, bench.seed_of(bench.step.name))
        for split in ("train", "held_out"):
            kept = [one for one in whole if (one.prompt in apart) == (split == "held_out")]
            path = bench.make("demonstrations") / f"{split}.jsonl"
            if not kept:
                why = next((f"; the first without: {one.why}" for one in revised if one.why), "")
                raise DataError(
                    path,
                    f"{len(whole)} of {len(revised)} prompts have a revision that ended by itself, which leaves none "
                    f"for it: take more prompts, or raise max_tokens{why}",
                )
            write_jsonl(path, [Demonstration(one.prompt, one.revision, one.id) for one in kept])


def _figures(revised: Sequence[Revised], costs: Mapping[str, float]) -> dict[str, Any]:
    """Prompts, those left out, the share of replies that revision changed, how often each principle was drawn, and what
    the critic cost."""
    rounds = [turn for one in revised for turn in one.rounds]
    changed = sum(turn.revision != turn.reply for turn in rounds)
    return {
        "prompts": len(revised),
        "left_out": sum(bool(one.why) for one in revised),
        "changed": changed / len(rounds) if rounds else 0.0,
        "principles": dict(sorted(Counter(turn.principle for turn in rounds).items())),
        **costs,
    }
