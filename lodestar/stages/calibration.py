"""Calibration of the policy: is it as sure of its answers as it should be, before training by a reward and after?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Kind, Stage
from lodestar.stages.evaluate import ancestor

if TYPE_CHECKING:
    from lodestar.data.questions import Question
    from lodestar.policy_calibration import Answered


class Calibration(Stage):
    """Asks both models multiple-choice questions, by the log-probs of the answers (lodestar.policy_calibration); it
    loads them itself, one after the other, and calls no server."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "against": "model",
        "prompts": "prompts",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"figures": "figures"}
    optional: ClassVar[frozenset[str]] = frozenset({"against", "tokenizer"})

    file: str | None = None
    """Questions (lodestar.data.questions); unset: of the synthetic world's facts, one per held-out prompt."""
    questions: int | None = Field(default=None, ge=1)
    """At most so many, the first; unset takes all."""
    per_token: bool = False
    """Divide an answer's log-prob by its tokens, for answers of unlike length."""
    bins: int = Field(default=10, ge=2)
    """Of the reliability diagram."""

    def ports(self, run: RunConfig) -> Mapping[str, tuple[Kind, ...]]:
        """Prompts only where questions are made of them."""
        return {port: kinds for port, kinds in super().ports(run).items() if port != "prompts" or self.file is None}

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """Compared with the model from which training by a reward began."""
        return ancestor(plan, inputs["policy"][0]) if port == "against" else None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """Facts are the synthetic world's alone."""
        if self.file is None and not plan.is_synthetic:
            raise ConfigError(
                f"stages.{step.name}.file", "must name a file of questions, unless data.source is synthetic"
            )

    def run(self, bench: Bench) -> None:
        """Writes figures/calibration.json: ``after``, and ``before`` and ``worsened`` where there is a model before."""
        from lodestar.files import write_atomically
        from lodestar.policy_calibration import calibration, worsened

        questions = self._read(bench)
        both = bench.takes("against")
        bench.progress.start(bench.step.name, 1 + both)
        after = self._answers(bench, "policy", questions)
        found: dict[str, Any] = {"after": calibration(after, bins=self.bins)}
        if both:
            before = self._answers(bench, "against", questions)
            found["before"] = calibration(before, bins=self.bins)
            found["worsened"] = worsened(before, after, bins=self.bins)
        bench.progress.metrics({"ece": found["after"]["ece"]["value"]})
        write_atomically(bench.make("figures") / "calibration.json", json.dumps(found, indent=1, allow_nan=False))

    def _read(self, bench: Bench) -> list[Question]:
        from lodestar.data.files import read_prompts
        from lodestar.data.questions import read_questions, world_questions

        if self.file is not None:
            return read_questions(Path(self.file))[: self.questions]
        prompts = read_prompts(bench.take("prompts") / "evaluation.jsonl")[: self.questions]
        return world_questions([prompt.text for prompt in prompts], seed=bench.seed_of(bench.step.name))

    def _answers(self, bench: Bench, port: str, questions: Sequence[Question]) -> list[Answered]:
        """What the model of a port says to each."""
        from lodestar.data.rows import encode_completions
        from lodestar.model.loading import load_causal_lm, resolve_device
        from lodestar.model.tokenizers import load_tokenizer
        from lodestar.policy_calibration import answered
        from lodestar.records import Feedback
        from lodestar.train.likelihood import log_likelihoods

        config, tokenizer = bench.config.model, load_tokenizer(bench.tokenizer(port))
        model = load_causal_lm(bench.take(port), dtype=config.dtype, device=str(resolve_device(config.device)))
        rows = [Feedback(one.prompt, one.choices, (), str(i)) for i, one in enumerate(questions)]
        likely = log_likelihoods(model, tokenizer, rows)
        bench.progress.advance()
        if self.per_token:
            lengths = [[len(ids) for ids in encode_completions(tokenizer, one.choices)] for one in questions]
            likely = [[a / n for a, n in zip(nats, of, strict=True)] for nats, of in zip(likely, lengths, strict=True)]
        return [answered(nats, one.answer) for nats, one in zip(likely, questions, strict=True)]
