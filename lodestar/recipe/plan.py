"""A run's plan: rounds unrolled, every port tied to the artifact that feeds it. All is known before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from pydantic import ValidationError

from lodestar.config.load import complaints
from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.stage import KINDS, Call, Kind, Stage, registry
from lodestar.recipe.written import nearest

GIVEN = "given"
"""``given/model`` (``model.path``) and ``given/KIND``: artifacts that the run brings along and no stage makes."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_RESERVED = {GIVEN, "rounds", "services", "redis", "logs", "feedback", "cache"}
ROUNDS = {"n", "stages"}


@dataclass(frozen=True, slots=True)
class Step:
    """A stage in its place: ``Step("r2.ppo", "ppo", Ppo(…), {"policy": ("r1.ppo/policy",)}, {"policy": "model"})``."""

    name: str
    kind: str
    """Name of the stage in the registry."""
    stage: Stage
    inputs: Mapping[str, tuple[str, ...]]
    """Port → artifacts, one but for gathering ports."""
    makes: Mapping[str, Kind]
    """Port → kind."""

    @property
    def round(self) -> int | None:
        """The round that it belongs to, from 1."""
        found = re.match(r"r(\d+)\.", self.name)
        return int(found[1]) if found else None

    @property
    def only_figures(self) -> bool:
        """Whether nothing can depend on what it makes, so that it may be done again at any time."""
        return all(kind == "figures" for kind in self.makes.values())


@dataclass(slots=True)
class Plan:
    """The steps of a run in order."""

    steps: list[Step] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)
    """Artifact → kind, oldest first."""

    def step(self, name: str) -> Step:
        """The step of a name.

        Raises:
            ConfigError: there is none; says the nearest.
        """
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise ConfigError(name, f"this run has no such stage{nearest(name, names)}; it has {', '.join(names)}")

    def newest(self, *kinds: Kind) -> str | None:
        """The newest artifact of the first kind that there is."""
        for kind in kinds:
            if made := self.all(kind):
                return made[-1]
        return None

    def all(self, kind: Kind) -> list[str]:
        """Artifacts of a kind, oldest first."""
        return [artifact for artifact, one in self.kinds.items() if one == kind]

    def maker(self, artifact: str) -> Step | None:
        """The step that makes an artifact; None for what the run brings along."""
        name = artifact.partition("/")[0]
        return next((step for step in self.steps if step.name == name), None)

    def last(self, kind: str) -> Step | None:
        """The last step of a kind of stage."""
        return next((step for step in reversed(self.steps) if step.kind == kind), None)

    def of_round_before(self, model: str) -> str:
        """The last model that was made before a model's own round; empty where it is of no round, or there is none."""
        maker = self.maker(model)
        if maker is None or maker.round is None:
            return ""
        own = maker.round
        earlier = list(takewhile(lambda one: (by := self.maker(one)) is None or by.round != own, self.all("model")))
        return earlier[-1] if earlier else ""

    def conditioned(self, model: str) -> bool:
        """Whether a model, or one that it goes on from, was trained under control tokens."""
        while (maker := self.maker(model)) is not None and not maker.stage.conditions:
            (model,) = maker.inputs.get("policy", ("",))
        return maker is not None

    @property
    def is_synthetic(self) -> bool:
        """Whether the run's prompts are the synthetic world's, whose hidden gold reward can judge them."""
        return any(step.kind == "data" and getattr(step.stage, "source", "") == "synthetic" for step in self.steps)

    @property
    def response_tokens(self) -> int:
        """The longest response that a stage samples; 0 where none does."""
        return max((getattr(step.stage, "max_tokens", 0) for step in self.steps if step.stage.rolls_out), default=0)

    def needed_by(self, name: str) -> set[str]:
        """Names of the steps whose artifacts a step takes."""
        return {artifact.partition("/")[0] for artifacts in self.step(name).inputs.values() for artifact in artifacts}


def plan(run: RunConfig) -> Plan:
    """The run's plan.

    Raises:
        ConfigError: an unknown stage, option or port (with the nearest name), a port that nothing feeds, an artifact of
            another kind or of a later stage, two stages of one name, options that do not fit together.
    """
    made = Plan()
    for given in given_artifacts(run):
        made.kinds[f"{GIVEN}/{given}"] = given
    unrolled = list(_unrolled(run.stages, "", "stages"))
    names = [name for name, _, _ in unrolled]
    for name, where, options in unrolled:
        step = _tied(name, where, options, run, made, names)
        step.stage.check(run, step, made)
        made.steps.append(step)
        for port, kind in step.makes.items():
            made.kinds[f"{name}/{port}"] = kind
    if not made.steps:
        raise ConfigError("stages", "there are none; name a recipe, or list stages")
    _refuse_needless_rewards(run, made)
    if not made.is_synthetic and any(source.kind == "gold" for source in run.services.reward.sources):
        raise ConfigError("services.reward.sources", "kind gold exists for data.source synthetic only")
    return made


def given_artifacts(run: RunConfig) -> dict[Kind, str]:
    """Kind → where it lies, of what the run brings along.

    Raises:
        ConfigError: an unknown kind, or a model that is not said by model.path.
    """
    for kind in run.given:
        if kind not in KINDS:
            raise ConfigError(
                f"given.{kind}", f"is no kind of artifact{nearest(kind, KINDS)}; kinds are {', '.join(KINDS)}"
            )
        if kind in ("model", "tokenizer"):
            raise ConfigError(f"given.{kind}", "is said by model.path")
    model: dict[Any, str] = {} if run.model.path is None else {"model": run.model.path}
    return model | dict(run.given)


def _unrolled(stages: Mapping[str, Any], prefix: str, where: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, dotted key and options of every stage; ``kind`` is among the options."""
    for name, options in stages.items():
        key = f"{where}.{name}"
        if options is None:
            continue
        if not isinstance(options, Mapping):
            raise ConfigError(key, f"must be a mapping of options, {{}} for none, is {options!r}")
        if name == "rounds":
            yield from _rounds(options, prefix, key)
            continue
        if not _NAME.fullmatch(str(name)) or name in _RESERVED:
            raise ConfigError(
                key, "is no name for a stage: lower-case letters, digits, - and _, and none of its own meaning"
            )
        yield prefix + name, key, {"kind": name, **options}


def _rounds(options: Mapping[str, Any], prefix: str, key: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if prefix:
        raise ConfigError(key, "rounds do not stand in rounds")
    if unknown := set(options) - ROUNDS:
        raise ConfigError(f"{key}.{min(unknown)}", "rounds have n and stages alone; a stage's options go below stages")
    n = options.get("n")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"{key}.n", f"must be a whole number from 1, is {n!r}")
    if not isinstance(options.get("stages"), Mapping) or not options["stages"]:
        raise ConfigError(f"{key}.stages", "must list the stages of a round")
    for number in range(1, n + 1):
        yield from _unrolled(options["stages"], f"r{number}.", f"{key}.stages")


def _tied(name: str, where: str, options: dict[str, Any], run: RunConfig, before: Plan, names: list[str]) -> Step:
    kind = options.pop("kind")
    known = registry()
    if kind not in known:
        raise ConfigError(
            where, f"there is no stage {kind!r}{nearest(str(kind), known)}; there are {', '.join(sorted(known))}"
        )
    try:
        stage = known[kind].model_validate(options)
    except ValidationError as error:
        raise ConfigError(where, complaints(error, known[kind], _elsewhere(kind, known))) from None
    ports = stage.ports(run)
    if unknown := set(stage.use) - set(ports):
        port = min(unknown)
        raise ConfigError(
            f"{where}.use.{port}",
            f"{kind} takes no {port}{nearest(port, ports)}; it takes {', '.join(ports) or 'nothing'}",
        )
    inputs: dict[str, tuple[str, ...]] = {}
    for port, kinds in ports.items():
        if port in stage.use:
            inputs[port] = _used(stage, port, kinds, where, name, before, names)
        elif port in stage.gathers() and (artifacts := [a for kind in kinds for a in before.all(kind)]):
            inputs[port] = tuple(artifacts)
        else:
            artifact = stage.tie(port, before, inputs)
            artifact = before.newest(*kinds) if artifact is None else artifact
            if artifact:
                inputs[port] = (artifact,)
            elif port not in stage.optional:
                raise ConfigError(f"{where}.{port}", _unfed(kinds, known))
    return Step(name, kind, stage, inputs, stage.outputs(run))


def _used(
    stage: Stage, port: str, kinds: tuple[Kind, ...], where: str, name: str, before: Plan, names: list[str]
) -> tuple[str, ...]:
    """What ``use`` names for a port."""
    said = stage.use[port]
    key = f"{where}.use.{port}"
    artifacts = (said,) if isinstance(said, str) else said
    if len(artifacts) != 1 and port not in stage.gathers():
        raise ConfigError(key, f"takes one artifact, not {len(artifacts)}")
    own_round = name.rpartition(".")[0]
    found = []
    for written in artifacts:
        in_round = f"{own_round}.{written}"
        artifact = in_round if own_round and in_round in before.kinds else written
        maker = artifact.partition("/")[0]
        if artifact not in before.kinds:
            if maker in names:
                if names.index(maker) >= names.index(name):
                    raise ConfigError(key, f"{written} comes of {maker}, which is not before {name}: a cycle")
                ports = [a for a in before.kinds if a.startswith(f"{maker}/")]
                raise ConfigError(
                    key,
                    f"{maker} makes no {artifact.partition('/')[2] or 'such artifact'}; it makes {', '.join(ports)}",
                )
            raise ConfigError(
                key, f"nothing makes {written}{nearest(written, before.kinds)}; there are {', '.join(before.kinds)}"
            )
        if before.kinds[artifact] not in kinds:
            raise ConfigError(
                key, f"{artifact} is a {before.kinds[artifact]} artifact, and {port} takes {' or '.join(kinds)}"
            )
        found.append(artifact)
    return tuple(found)


def _unfed(kinds: tuple[Kind, ...], known: Mapping[str, type[Stage]]) -> str:
    makers = sorted(name for name, stage in known.items() if set(stage.makes.values()) & set(kinds))
    given = ", or set model.path" if "model" in kinds else ""
    return f"nothing before it makes {' or '.join(kinds)}; put {' or '.join(makers)} before it{given}"


def _elsewhere(kind: str, known: Mapping[str, type[Stage]]) -> Mapping[str, str]:
    """Option → the other stage that has it, for one that was written below the wrong stage."""
    return {option: name for name, stage in known.items() if name != kind for option in stage.model_fields}


def calls_of(step: Step) -> dict[str, Call]:
    """The fleets that a step needs, by name: those that its options do not want, and those of optional ports that
    nothing feeds and no folder outside the run stands in for, are left out.

    A reward that is made of other things than the run's own model is served without a port.
    """
    return {
        name: call
        for name, call in step.stage.calls.items()
        if step.stage.wants(name)
        and (
            not call.port
            or call.port in step.inputs
            or step.stage.outside(name) is not None
            or (call.role == "reward" and call.port not in step.stage.optional)
        )
    }


def _refuse_needless_rewards(run: RunConfig, made: Plan) -> None:
    """A reward model that nobody will take was meant for a reward that does not use it."""
    users = [step for step in made.steps if step.stage.calls or not step.only_figures]  # a report tells of everything
    taken = {artifact for step in users for artifacts in step.inputs.values() for artifact in artifacts}
    for step in made.steps:
        makes = {port for port, kind in step.makes.items() if kind == "reward_model"}
        served = any(call.role == "reward" for other in made.steps for call in calls_of(other).values())
        if makes and served and not any(f"{step.name}/{port}" in taken for port in makes):
            raise ConfigError(
                f"stages.{step.name}",
                "makes a reward model that nothing takes: services.reward.sources is made of others; set it to null, "
                "or name it as a source of kind model without paths",
            )
