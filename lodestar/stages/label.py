"""Labelling: somebody says which of the policy's own replies are better (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lodestar.config.rewards import SourceConfig, ensemble_source
from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.labelling.options import Form, JudgeOptions, PeopleOptions
from lodestar.llm.options import MANNER
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage

if TYPE_CHECKING:
    from lodestar.labelling.port import Asked, Labeller, Question
    from lodestar.records import Comparison

By = Literal["panel", "gold", "file", "people", "judge"]
ENSEMBLE = ("disagreement", "bald", "volume_removal")
"""Choosers that compare the members of the reward's ensemble (lodestar.preference.active)."""


class Label(Stage):
    """Feedback on samples, split by prompt like any other."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "samples": "samples",
        "judge": "model",
        "scorer": "reward_model",
        "people": "feedback",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"feedback": "feedback", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {
        "feedback": Call("feedback"),
        "policy": Call("policy", "judge"),
        "reward": Call("reward", "scorer"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"people"})
    manner: ClassVar[Mapping[str, frozenset[str]]] = {"judge": MANNER}

    by: By = "panel"
    """panel: the synthetic world's noisy annotators; gold: its hidden reward; file: rows that somebody writes;
    people: at the page of a feedback service, for whom the stage waits; judge: a language or a reward model."""
    budget: int | None = Field(default=None, ge=1)
    """Comparisons to ask for at most, K(K − 1)/2 where K replies are rated or ranked at once; unset: one question per
    prompt."""
    choose: Literal["random", "uncertain", "disagreement", "bald", "volume_removal"] = "random"
    """Which pairs to ask about; every prompt gets one before any gets a second. uncertain: those whose scores by the
    reward are nearest; the others: those of which the members of the reward's ensemble think differently. Of rounds,
    the first chooses at random where no reward model scores its samples."""
    diverse: bool = False
    """disagreement, bald, volume_removal: of the best pairs those that the members do not answer alike."""
    file: str | None = None
    """by: file — feedback on these samples; while it is not there, the stage writes the questions and stops."""
    people: PeopleOptions | None = None
    """by: people — where and how they are asked; ``{}`` is a page that the run starts itself."""
    judge: JudgeOptions | None = None
    """by: judge — who judges and how it is asked; ``{}`` is the newest reward model of the run."""
    held_out_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of prompts kept apart for held-out accuracy, and as much again for the reward model's card."""

    @model_validator(mode="after")
    def _file_goes_with_by(self) -> Label:
        if (self.by == "file") != (self.file is not None):
            raise ValueError("file goes with by: file, and only with it")
        if (self.by == "people") != (self.people is not None):
            raise ValueError("people goes with by: people, and only with it; people: {} takes its defaults")
        if (self.by == "judge") != (self.judge is not None):
            raise ValueError("judge goes with by: judge, and only with it; judge: {} is the newest reward model")
        if self.judge is not None and "judge" in self.use and (self.judge.is_elsewhere or self.judge.has_a_folder):
            raise ValueError("use.judge is a judge already: leave address, url, model and reward out")
        if self.choose != "random" and self.form != "pair":
            raise ValueError(f"choose: {self.choose} chooses pairs, and goes with people.form: pair alone")
        if self.diverse and self.choose not in ENSEMBLE:
            raise ValueError(f"diverse goes with choose: {', '.join(ENSEMBLE)}, and only with one of them")
        return self

    @property
    def form(self) -> Form:
        """What is asked."""
        return "pair" if self.people is None else self.people.form

    @property
    def _scored(self) -> bool:
        """Whether a reward model judges."""
        return self.judge is not None and self.judge.scores and "judge" not in self.use

    def ports(self, run: RunConfig) -> Mapping[str, tuple[Kind, ...]]:
        """A judge of the run's own, and what people said for it to be held against."""
        wanted = {"samples"}
        if self.judge is not None:
            wanted |= {"judge"} & set(self.use)
            wanted |= {"people"} if self.judge.shared else set()
            wanted |= {"scorer"} if self._scored and self.judge.reward is None else set()
        return {port: kinds for port, kinds in super().ports(run).items() if port in wanted}

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """A judge is held against people, and not against a judge of an earlier round."""
        if port != "people":
            return None
        return next((one for one in reversed(plan.all("feedback")) if not _of_a_judge(plan, one)), "")

    def wants(self, fleet: str) -> bool:
        """A page of the run's own, where people are asked and have none; the judge's servers."""
        if fleet == "feedback":
            return self.people is not None and self.people.address is None
        if fleet == "reward":
            return self._scored
        return self.judge is not None and not self._scored and not self.judge.is_elsewhere

    def outside(self, fleet: str) -> str | None:
        """A judge in a folder."""
        return None if self.judge is None else self.judge.reward if fleet == "reward" else self.judge.model

    def sources(self, run: RunConfig) -> tuple[SourceConfig, ...]:
        """The judge alone, whatever the run's reward is made of."""
        return (SourceConfig(name="judge", heads=None if self.judge is None else self.judge.heads),)

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """The panel and gold know the synthetic world alone; uncertainty needs scores; a form holds so many replies."""
        if self.by in ("panel", "gold") and not plan.is_synthetic and plan.last("data") is not None:
            raise ConfigError(
                f"stages.{step.name}.by", f"{self.by} exists for data.source synthetic only; set by: file or people"
            )
        if self.judge is not None and self.judge.aspect is not None:
            from lodestar.constitution import principles

            principles(self.judge.constitution, self.judge.aspect, f"stages.{step.name}.judge", choosing=True)
        made = plan.step(step.inputs["samples"][0].partition("/")[0])
        if made.kind != "sample":
            return
        if self.choose != "random" and "reward" not in made.inputs and not _first_of_several(run, step):
            raise ConfigError(
                f"stages.{step.name}.choose",
                f"{self.choose} needs scores, and no reward model scores what {made.name} samples: put a reward stage "
                "before it, or set random",
            )
        if self.choose in ENSEMBLE and ensemble_source(run.services.reward.sources) is None:
            raise ConfigError(
                f"stages.{step.name}.choose",
                f"{self.choose} compares the members of an ensemble, and services.reward.sources must hold one: set "
                "reward.ensemble to 4 and sources to [{name: reward, heads: ensemble}], or choose random",
            )
        if self.form != "pair":
            from lodestar.feedback.campaign import COMPLETIONS

            n, most = getattr(made.stage, "n", 0), COMPLETIONS[self.form][1]
            if n > most:
                raise ConfigError(
                    f"stages.{step.name}.people.form",
                    f"{self.form} shows {most} replies at most, and {made.name} makes {n}: set {made.name}.n",
                )

    def run(self, bench: Bench) -> None:
        """Chooses, asks, splits."""
        from lodestar.data.corpus import split_families
        from lodestar.data.files import write_feedback
        from lodestar.errors import DataError
        from lodestar.files import read_jsonl, write_atomically
        from lodestar.labelling.shared import agreement_with, asked_of

        samples = read_jsonl(bench.take("samples") / "samples.jsonl")
        seed = bench.seed_of(bench.step.name)
        choose = self._chooser(bench)
        questions = self._chosen(choose, samples, seed)
        shared = self._shared(bench, seed)
        bench.progress.start(bench.step.name, len(questions) * self._answers_each() + len(shared))
        labeller = _labellers()[self.by](Asked.by(bench, people=self.people, file=self.file, judge=self.judge))
        # First of all: a judge that cannot answer is found out before thousands of questions are paid for.
        held = agreement_with(shared, labeller.label(asked_of(shared), bench.progress.advance)) if shared else {}
        answers = labeller.label(questions, bench.progress.advance)
        splits = split_families((row.prompt for row in answers), self.held_out_fraction, seed)
        blank = sum(not reply["text"].strip() for row in samples for reply in row["replies"])
        counts = {"questions": len(questions), "answers": len(answers), "blank_replies": blank}
        told = dict(labeller.figures)
        counts |= self._kept_unread(bench, told.pop("unread", None))
        for split in ("train", "held_out", "evaluation"):
            rows = [row for row in answers if splits[row.prompt] == split]
            if not rows:
                raise DataError(
                    bench.make("feedback") / f"{split}.jsonl",
                    f"none of {len(answers)} answers is left for it; sample more prompts, or raise held_out_fraction",
                )
            write_feedback(bench.make("feedback") / f"{split}.jsonl", rows)
            counts[f"feedback.{split}"] = len(rows)
        found = {"by": self.by, "choose": choose, **counts, **told} | ({"shared": held} if held else {})
        write_atomically(bench.make("figures") / "label.json", json.dumps(found, indent=1, allow_nan=False))
        numbers = counts | told | {name: held[name]["value"] for name in ("agreement", "kappa") if held}
        bench.progress.metrics({name: float(value) for name, value in numbers.items()})

    def _shared(self, bench: Bench, seed: int) -> dict[str, Comparison]:
        """Pairs that people have judged and no stage trains on, for a judge."""
        from lodestar.data.files import read_feedback
        from lodestar.labelling.shared import shared_pairs

        if self.judge is None or not bench.takes("people"):
            return {}
        rows = bench.take("people") / "evaluation.jsonl"
        return shared_pairs(read_feedback(rows), self.judge.shared, seed) if rows.exists() else {}

    def _kept_unread(self, bench: Bench, unread: Sequence[Mapping[str, str]] | None) -> dict[str, int]:
        """Writes figures/unread.jsonl: questions to which a judge had no answer."""
        from lodestar.files import write_jsonl
        from lodestar.labelling.judge import why

        if unread is None:
            return {}
        if unread:
            write_jsonl(bench.make("figures") / "unread.jsonl", unread)
            bench.progress.warn(
                f"{len(unread)} questions have no label of the judge ({bench.step.name}/figures/unread.jsonl); the "
                f"first is {why(unread[0])}"
            )
        return {"unread": len(unread)}

    def _chosen(self, choose: str, samples: Sequence[dict[str, Any]], seed: int) -> list[Question]:
        from lodestar.labelling.choose import ActivePairs, AllReplies, RandomPairs, UncertainPairs

        if self.form != "pair":
            everything = sum(len(row["replies"]) ** 2 for row in samples)
            return AllReplies().choose(samples, self.budget or everything, seed)
        match choose:
            case "random":
                chooser = RandomPairs()
            case "uncertain":
                chooser = UncertainPairs()
            case _:
                chooser = ActivePairs(choose, diverse=self.diverse)
        return chooser.choose(samples, self.budget or len(samples), seed)

    def _chooser(self, bench: Bench) -> str:
        """Random while no reward model scores the samples, which is said."""
        (samples,) = bench.step.inputs["samples"]
        made = bench.plan.maker(samples)
        if self.choose == "random" or made is None or made.kind != "sample" or "reward" in made.inputs:
            return self.choose
        bench.progress.say(f"{bench.step.name} chooses at random: no reward model has scored {made.name}'s replies yet")
        return "random"

    def _answers_each(self) -> int:
        """Answers to a question when all is judged."""
        if self.people is None:
            return 1
        from lodestar.feedback.campaign import Campaign

        aspects = len(Campaign(name="x", form="aspects").aspects) if self.form == "aspects" else 1
        return self.people.overlap * aspects


def _first_of_several(run: RunConfig, step: Step) -> bool:
    """Whether later rounds choose by a reward model that this one makes."""
    return step.round == 1 and run.stages["rounds"]["n"] > 1


def _labellers() -> Mapping[str, Callable[[Asked], Labeller]]:
    from lodestar.labelling.file import AnswerFile
    from lodestar.labelling.judge import judge
    from lodestar.labelling.panel import Gold, Panel
    from lodestar.labelling.people import People

    return {"panel": Panel, "gold": Gold, "file": AnswerFile, "people": People, "judge": judge}


def _of_a_judge(plan: Plan, feedback: str) -> bool:
    maker = plan.maker(feedback)
    return maker is not None and getattr(maker.stage, "by", "") == "judge"
