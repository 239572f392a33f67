"""PPO against the reward with a KL penalty to the reference: InstructGPT's third step (Ouyang et al. 2022, 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from lodestar.config.base import Section
from lodestar.config.ppo import PpoConfig
from lodestar.config.rewards import SourceConfig, critic_source, served_sources, watched_source
from lodestar.config.run import RunConfig
from lodestar.config.serve import LearnerTask
from lodestar.errors import ConfigError, LodestarError
from lodestar.recipe.plan import Plan, Step
from lodestar.recipe.stage import Bench, Call, Kind, Stage


class RunningConfig(Section):
    """Win rates while PPO goes on, against the start model's replies, for the live view and the report."""

    every: int = Field(default=5, ge=0)
    """PPO steps between two; 0 takes none."""
    prompts: int = Field(default=64, ge=1)
    """Evaluation prompts of each."""


class Ppo(Stage, PpoConfig):
    """Rolls prompts out with the policy, scores them, and learns from them; the learner is this stage's process."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {
        "policy": "model",
        "reference": "model",
        "reward": "reward_model",
        "prompts": "prompts",
        "demonstrations": "demonstrations",
        "text": "text",
        "tokenizer": "tokenizer",
    }
    makes: ClassVar[Mapping[str, Kind]] = {"policy": "model", "figures": "figures"}
    calls: ClassVar[Mapping[str, Call]] = {
        "policy": Call("policy", "policy", follows=True),
        "reward": Call("reward", "reward"),
        "reference": Call("reference", "reference"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"tokenizer"})
    method: ClassVar[str] = "PPO"
    rolls_out: ClassVar[bool] = True
    serves: ClassVar[str] = "learner"
    grows: ClassVar[str] = "steps"
    keeps: ClassVar[tuple[str, ...]] = ("checkpoints", "before.jsonl")

    running: RunningConfig = RunningConfig()
    """Win rates while PPO goes on."""

    def ports(self, run: RunConfig) -> Mapping[str, tuple[Kind, ...]]:
        """Demonstrations only for the scores' offset, text only for PPO-ptx."""
        needless = {"demonstrations"} if self.score.offset != "demonstrations" else set()
        needless |= {"text"} if self.ptx.coefficient == 0 else set()
        return {port: kinds for port, kinds in super().ports(run).items() if port not in needless}

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """The reference is the model that this stage starts from."""
        return inputs["policy"][0] if port == "reference" else None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """What depends on the run as a whole."""
        key = f"stages.{step.name}"
        if run.deterministic and self.max_staleness > 0:
            raise ConfigError(
                f"{key}.max_staleness",
                "deterministic needs ppo.max_staleness 0: which weights a stale rollout sees depends on timing",
            )
        if self.critic.init == "reward" and critic_source(self._sources(run, plan)) is None:
            raise ConfigError(
                f"{key}.critic.init",
                "reward needs services.reward.sources to be one single model of one label, with weight 1 and no offset "
                "of its own; functions, rules, ensembles and weighted sums have no value head to start from: set "
                "ppo.critic.init: policy",
            )
        check_room(run, step, plan, self.max_tokens)

    def run(self, bench: Bench) -> None:
        """Takes the start model's replies for running win rates, then is the learner until the last step."""
        from lodestar.files import digest
        from lodestar.rewards.functions import source_digest
        from lodestar.stages.running import running_win_rate

        config, sources = bench.config, self._sources(bench.config, bench.plan)
        models = {f"{s.name} {path}": path for s in sources for path in s.paths}
        own = bench.take("reward") if bench.takes("reward") else None
        critic = critic_source(sources)
        task = LearnerTask(
            run=config.name,
            folder=bench.root,
            deterministic=config.deterministic,
            device=config.model.device,
            dtype=config.model.dtype,
            hang_seconds=config.services.hang_seconds,
            endpoints=bench.endpoints,
            listening=bench.listening,
            section=config.services.learner,
            queue=config.services.queue,
            ppo=self,
            seed=bench.seed,
            policy=str(bench.take("policy")),
            tokenizer=str(bench.tokenizer("policy")),
            reference=str(bench.take("reference")),
            critic=None if critic is None else critic.paths[0] if critic.paths else str(own),
            watched=watched_source(sources),
            sources={
                **{source.name: source.model_dump_json() for source in sources},
                **{f"function {s.name}": source_digest(s.function) for s in sources if s.function is not None},
                **{f"model {name}": digest(Path(path)) for name, path in models.items() if Path(path).exists()},
                **(
                    {}
                    if own is None
                    else {"the run's reward model": bench.store.digest(bench.step.inputs["reward"][0])}
                ),
            },
            prompts=bench.take("prompts") / "ppo.jsonl",
            demonstrations=bench.take("demonstrations") / "train.jsonl" if bench.takes("demonstrations") else None,
            text=bench.take("text") / "train.jsonl" if bench.takes("text") else None,
            state=bench.unfinished,
            figures=bench.make("figures"),
            output=bench.make("policy"),
        )
        with running_win_rate(bench, self.running, self):
            code = bench.service("learner")(task)
        if code:
            raise LodestarError(f"the learner ended with exit code {code}")

    def _sources(self, run: RunConfig, plan: Plan) -> tuple[SourceConfig, ...]:
        return served_sources(run.services.reward.sources, synthetic=plan.is_synthetic)


def check_room(run: RunConfig, step: Step, plan: Plan, response_tokens: int) -> None:
    """Refuses prompts and responses that do not fit a model that is made from nothing.

    A given model's context is known when it is loaded: the data stage looks at it.
    """
    data = plan.last("data")
    prompt_tokens, context = (
        getattr(data.stage, "max_prompt_tokens", 0) if data else 0,
        run.model.architecture.context_tokens,
    )
    n, most = getattr(step.stage, "samples_per_prompt", 1), run.services.policy.max_waiting
    if n > most:
        raise ConfigError(
            f"stages.{step.name}.{'n' if hasattr(step.stage, 'n') else 'samples_per_prompt'}",
            f"is {n}, beyond services.policy.max_waiting {most}, the most samples of one request: lower it, or raise "
            "that",
        )
    control = int(plan.conditioned(step.inputs["policy"][0]))
    wanted = prompt_tokens + control + response_tokens
    if run.model.path is None and wanted > context:
        raise ConfigError(
            f"stages.{step.name}.max_tokens",
            f"with data.max_prompt_tokens{' and a control token' * control} it is {wanted}, beyond "
            f"model.architecture.context_tokens {context}",
        )
