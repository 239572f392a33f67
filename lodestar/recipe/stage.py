"""What a stage is: options, ports, the servers it calls, and ``run``. This file knows no method and no machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import Field

from lodestar.config.base import Section
from lodestar.config.rewards import SourceConfig
from lodestar.config.run import RunConfig
from lodestar.config.serve import Endpoints, Listening
from lodestar.errors import ConfigError

if TYPE_CHECKING:  # both know steps
    from lodestar.recipe.plan import Plan, Step
    from lodestar.recipe.store import Store
    from lodestar.train.progress import Progress

Kind = Literal[
    "demonstrations",
    "feedback",
    "prompts",
    "samples",
    "text",
    "tokenizer",
    "model",
    "rival",
    "reward_model",
    "figures",
]
"""Of artifacts. A rival is a model that the evaluation holds others against, and that nothing goes on from."""
KINDS: tuple[Kind, ...] = get_args(Kind)
Role = Literal["policy", "reward", "reference", "feedback"]
GROUP = "lodestar.stages"
"""Entry-point group: a stage's name → its class. A distribution of one's own adds methods by it."""


@dataclass(frozen=True, slots=True)
class Call:
    """Servers of one role that serve the artifact of one port: ``Call("policy", "against")``."""

    role: Role
    port: str = ""
    """Empty: no artifact, as the page where people judge."""
    follows: bool = False
    """Policy servers take the weights that this stage's learner publishes, as they come."""


class Stage(Section):
    """One method: a subclass says what it takes and makes, which servers it calls, and runs."""

    takes: ClassVar[Mapping[str, Kind | tuple[Kind, ...]]] = {}
    """Port → kind; of several kinds the first that something before it makes."""
    makes: ClassVar[Mapping[str, Kind]] = {}
    """Port → kind. A stage that makes figures alone is done again whenever what it takes has changed."""
    calls: ClassVar[Mapping[str, Call]] = {}
    """Name of a fleet → what it serves."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Ports that may stay empty, whose servers are then left out."""
    rolls_out: ClassVar[bool] = False
    """Whether it issues tickets: it gets a queue and rollout workers."""
    method: ClassVar[str] = ""
    """What reports call the way in which it trains a model on feedback: ``PPO``."""
    conditions: ClassVar[bool] = False
    """Whether a control token stands before every prompt of the model that it makes (lodestar.data.control)."""
    serves: ClassVar[str] = ""
    """The role whose gRPC services its own process serves, if any: it gets ports, and its health is watched."""

    manner: ClassVar[Mapping[str, frozenset[str]]] = {}
    """Section → options of it that decide nothing of what the stage makes, such as how long it waits for somebody: they
    may be changed in a run that has begun."""
    grows: ClassVar[str] = ""
    """A whole-number option that may be raised in a run that has begun: the stage goes on from where it is."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Names below ``unfinished`` that stay beside a finished stage, for it to go on from. Whoever needs the room may
    delete them: then it cannot grow."""

    use: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Port → the artifact to take (STAGE/PORT), where the newest of its kind is not meant."""

    def ports(self, run: RunConfig) -> Mapping[str, tuple[Kind, ...]]:
        """What these options take in this run: a subclass leaves out ports that they do not need.

        A reward made of rules, functions or models of one's own needs no reward model.
        """
        served = {call.port for call in self.calls.values() if call.role == "reward"}
        needless = served if not needs_own_model(self.sources(run)) else set()
        return {
            port: (kinds,) if isinstance(kinds, str) else kinds
            for port, kinds in self.takes.items()
            if port not in needless
        }

    def outputs(self, run: RunConfig) -> Mapping[str, Kind]:
        """What these options make in this run."""
        return self.makes

    def wants(self, fleet: str) -> bool:
        """Whether these options need a fleet of ``calls``."""
        return True

    def outside(self, fleet: str) -> str | None:
        """Folder or hub id of a model that a fleet serves where it is no artifact of the run."""
        return None

    def sources(self, run: RunConfig) -> tuple[SourceConfig, ...]:
        """What the scores of this stage's reward servers are made of."""
        return run.services.reward.sources

    def gathers(self) -> frozenset[str]:
        """Ports that take every artifact of their kind so far, and not the newest alone."""
        return frozenset()

    def tie(self, port: str, plan: Plan, inputs: Mapping[str, tuple[str, ...]]) -> str | None:
        """The artifact that a port takes by default, where that is not the newest of its kind; empty for none.

        Args:
            plan: the steps before this one. inputs: what this step's earlier ports take.
        """
        return None

    def check(self, run: RunConfig, step: Step, plan: Plan) -> None:
        """Refuses options that do not fit the run or what comes before; ConfigError names the key."""

    def run(self, bench: Bench) -> None:
        """Does the work: reads ``bench.take(port)``, writes ``bench.make(port)``."""
        raise NotImplementedError


def needs_own_model(sources: Sequence[SourceConfig]) -> bool:
    """Whether a reward of these sources is made, in part at least, of the run's own reward model."""
    return not sources or any(source.kind == "model" and not source.paths for source in sources)


@cache
def registry() -> Mapping[str, type[Stage]]:
    """Every stage that an installed distribution brings, by name."""
    found: dict[str, type[Stage]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        stage = point.load()
        if not (isinstance(stage, type) and issubclass(stage, Stage)):
            raise ConfigError(f"stages.{point.name}", f"{point.value} is no lodestar.recipe.Stage")
        unknown = [kind for kind in stage.makes.values() if kind not in KINDS]
        if unknown:
            raise ConfigError(f"stages.{point.name}", f"{point.value} makes {unknown[0]}, which is no kind of artifact")
        found[point.name] = stage
    return found


@dataclass(frozen=True, slots=True)
class Bench:
    """What a stage works with: where its inputs lie, where its outputs go, whom it may call."""

    config: RunConfig
    plan: Plan
    step: Step
    store: Store
    servers: Mapping[str, tuple[str, ...]]
    """Fleet → addresses."""
    progress: Progress
    endpoints: Endpoints = field(default_factory=Endpoints)
    """Redis and the learner's weights, for stages that roll out."""
    listening: Listening = field(default_factory=Listening)
    """Where a stage that is a server itself listens."""

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self.store.root

    @property
    def seed(self) -> int:
        """The run's seed: stages of one run share it, and the seed of anything drawn contains the stage's name."""
        return self.config.seed

    def seed_of(self, purpose: str) -> int:
        """A seed of its own for something drawn, below 2⁶³."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:8]) >> 1

    def takes(self, port: str) -> bool:
        """Whether anything feeds an optional port."""
        return port in self.step.inputs

    def take(self, port: str) -> Path:
        """Where the one artifact of a port lies; a hub id for a model that is fetched."""
        (artifact,) = self.step.inputs[port]
        return self.store.path(artifact)

    def tokenizer(self, port: str) -> Path:
        """Where the tokenizer of a port's model lies: for the given model the one that the data stage made of it, with
        its chat template; every other model has the run's beside it."""
        from lodestar.recipe.plan import GIVEN

        given = self.step.inputs[port][0] == f"{GIVEN}/model"
        return self.take("tokenizer") if given and self.takes("tokenizer") else self.take(port)

    def kind(self, port: str) -> Kind:
        """The kind of artifact that a port of several kinds takes."""
        return self.plan.kinds[self.step.inputs[port][0]]

    def take_all(self, port: str) -> list[Path]:
        """Where the artifacts of a gathering port lie, oldest first."""
        return [self.store.path(artifact) for artifact in self.step.inputs[port]]

    def make(self, port: str) -> Path:
        """Where an output goes; it becomes an artifact when ``run`` has returned."""
        if port not in self.step.makes:
            raise KeyError(f"{self.step.name} makes no {port}")
        return self.unfinished / port

    @property
    def unfinished(self) -> Path:
        """State that survives a kill and goes when the stage is sealed: optimizers, checkpoints."""
        path = self.store.unfinished(self.step)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def service(self, role: str) -> Any:
        """The main function of a service that this stage is itself: ``bench.service("learner")(task)``."""
        from lodestar.crew.port import service_main

        return service_main(role)
