"""What is compared: a file's options under each method's recipe, once per seed, with everything equal that can be.

A method is a recipe that ships, or one of the file's own below ``compare``:

    compare:
      sft-5x: {recipe: sft, stages: {data: {demonstration_rows: 35000}}}

Options of the file go over those of every recipe that has the stage, in its rounds too. Every method is evaluated on
the same prompts with the same decoding, against the SFT model of its seed; what the evaluation would hold PPO against
(rivals) are other rows of the table here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestar.config.load import parse_config, parse_overrides, read_tree
from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import Plan, plan
from lodestar.recipe.written import SERVICES, as_stages, merged, nearest, recipe, recipes

SECTION = "compare"
"""Of the file: method → options over the file's, ``recipe`` among them."""
BASELINE = "sft/policy"
"""The model that every method is judged against."""
EVALUATE = "evaluate"
RIVALS: dict[str, Any] = {"best_of": [], "temperatures": []}
"""Options of ``evaluate`` where the file says nothing else."""
DEFAULT_TOKENS = 64
"""Response tokens where no method samples in training and the file says nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a comparison: ``Entry("dpo", 2, RunConfig(…), Plan(…))``."""

    method: str
    seed: int
    run: RunConfig
    plan: Plan

    @property
    def root(self) -> Path:
        """The run's folder."""
        return Path(self.run.runs_dir) / self.run.name


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every run of a comparison, seed by seed."""

    name: str
    root: Path
    """Its runs lie below, and what comes of them."""
    entries: tuple[Entry, ...]

    @property
    def methods(self) -> list[str]:
        """In the order asked for."""
        return list(dict.fromkeys(entry.method for entry in self.entries))


def comparison(path: Path, names: Sequence[str], seeds: int, overrides: Iterable[str] = ()) -> Comparison:
    """The comparison that a file and the command line ask for; nothing has run.

    Args:
        names: methods; none takes those of the file's section ``compare``.
        seeds: how many, from the file's on.

    Raises:
        ConfigError: an unknown recipe or stage (with the nearest name), options that one of the methods refuses, no
            methods, or a method twice.
    """
    tree, own = _read(path, overrides)
    if seeds < 1:
        raise ConfigError("--seeds", f"must be 1 or more, is {seeds}")
    trees = {name: _tree_of(name, own, tree, path) for name in _named(names, own)}
    _refuse_unknown_stages(tree, trees)
    first, name = tree.get("seed", 0), tree.get("name")
    if not isinstance(first, int) or not isinstance(name, str):
        parse_config(tree, where=str(path))  # says what is wrong with them
        raise ConfigError(str(path), "name must be a name, and seed a whole number")
    root = Path(tree.get("runs_dir", "runs")) / f"{name}-compare"
    place = {"runs_dir": str(root)}
    tokens = _response_tokens(trees, path)
    entries = []
    for seed in range(first, first + seeds):
        for method, asked in trees.items():
            told = asked | place | {"name": f"{method}-s{seed}", "seed": seed}
            run, made = _planned(_evaluated_alike(told, tokens, method, path), method, path)
            entries.append(Entry(method, seed, run, made))
    return Comparison(name, root, tuple(entries))


def _read(path: Path, overrides: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's options with overrides over them, and its own methods."""
    tree = read_tree(path)
    own = tree.pop(SECTION, None) or {}
    if not isinstance(own, Mapping) or not all(isinstance(over, Mapping) for over in own.values()):
        raise ConfigError(f"{path}: {SECTION}", "must map each method to its options: {sft-5x: {recipe: sft, …}}")
    told = parse_overrides(overrides)
    known = {*RunConfig.model_fields, *SERVICES}
    try:
        tree, told = as_stages(tree), as_stages(told)
    except ValueError as error:
        raise ConfigError(str(path), str(error)) from None
    short = {key: value for key, value in told.items() if key not in known}
    rest = {key: value for key, value in told.items() if key in known}
    return merged(merged(tree, rest), {"stages": short} if short else {}), dict(own)


def _named(names: Sequence[str], own: Mapping[str, Any]) -> list[str]:
    known = [*own, *(name for name in recipes() if name not in own)]
    names = list(names) or list(own)
    if not names:
        raise ConfigError(
            "--recipes", f"name the methods to compare, with commas between; there are {', '.join(known)}"
        )
    for name in names:
        if name not in known:
            raise ConfigError(
                "--recipes", f"there is no recipe {name!r}{nearest(name, known)}; there are {', '.join(known)}"
            )
        if names.count(name) > 1:
            raise ConfigError("--recipes", f"{name} stands twice")
    return names


def _tree_of(name: str, own: Mapping[str, Any], tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The whole tree of a method: its recipe, the file's options and its own."""
    over = dict(own.get(name, {}))
    named = over.pop("recipe", None) or (name if name in recipes() else tree.get("recipe"))
    if named is None:
        raise ConfigError(f"{path}: {SECTION}.{name}.recipe", f"must name a recipe; there are {', '.join(recipes())}")
    try:
        base = recipe(str(named))
        over = as_stages(over)
    except ValueError as error:
        raise ConfigError(f"{path}: {SECTION}.{name}", str(error)) from None
    stages = _stages(base["stages"], tree.get("stages") or {})
    if unknown := [stage for stage in over.get("stages") or {} if stage not in stages]:
        raise ConfigError(
            f"{path}: {SECTION}.{name}.stages.{unknown[0]}",
            f"recipe {named} has no such stage{nearest(unknown[0], stages)}; it has {', '.join(stages)}",
        )
    rest = {key: value for key, value in tree.items() if key not in ("recipe", "stages")}
    return merged(merged({**base, "stages": stages}, rest), over)


def _stages(written: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's stages with the file's options."""
    stages = merged(written, {name: options for name, options in told.items() if name in written})
    rounds = stages.get("rounds")
    if isinstance(rounds, Mapping) and isinstance(rounds.get("stages"), Mapping):
        inside = {
            name: merged(options or {}, told[name]) if isinstance(told.get(name), Mapping) else options
            for name, options in rounds["stages"].items()
        }
        stages["rounds"] = {**rounds, "stages": inside}
    return stages


def _refuse_unknown_stages(tree: Mapping[str, Any], trees: Mapping[str, Mapping[str, Any]]) -> None:
    """A file may have options of recipes that are not compared now; one of no recipe at all is a mistake."""
    known: dict[str, None] = {}
    for stages in [*(asked["stages"] for asked in trees.values()), *(recipe(name)["stages"] for name in recipes())]:
        known |= dict.fromkeys([*stages, *((stages.get("rounds") or {}).get("stages") or {})])
    for stage in tree.get("stages") or {}:
        if stage not in known:
            raise ConfigError(
                f"stages.{stage}", f"no recipe has such a stage{nearest(stage, known)}; they have {', '.join(known)}"
            )


def _response_tokens(trees: Mapping[str, dict[str, Any]], path: Path) -> int:
    """Room for the longest response that any method samples, but for no more than each one's evaluation can hold."""
    sampled, held = [], []
    for method, tree in trees.items():
        sampled.append(_planned(tree | {"name": "x"}, method, path)[1].response_tokens)
        held.append((tree["stages"].get(EVALUATE) or {}).get("max_tokens"))
    return min([max(sampled) or DEFAULT_TOKENS, *(tokens for tokens in held if isinstance(tokens, int))])


def _evaluated_alike(tree: dict[str, Any], tokens: int, method: str, path: Path) -> dict[str, Any]:
    """The tree with its evaluation as every other method's, against the SFT model."""
    _, made = _planned(tree, method, path)
    step = made.last("evaluate")
    if step is None or step.name != EVALUATE:
        raise ConfigError(f"{path}: {method}", f"ends without a stage {EVALUATE}, by which methods are compared")
    said = tree["stages"][EVALUATE] or {}
    alike: dict[str, Any] = RIVALS | said | {"max_tokens": tokens}
    if BASELINE in made.kinds and step.inputs["policy"][0] != BASELINE and "against" not in said.get("use", {}):
        alike["use"] = {**said.get("use", {}), "against": BASELINE}
    return {**tree, "stages": {**tree["stages"], EVALUATE: alike}}


def _planned(tree: Mapping[str, Any], method: str, path: Path) -> tuple[RunConfig, Plan]:
    try:
        run = parse_config(tree, where=str(path))
        return run, plan(run)
    except ConfigError as error:
        raise ConfigError(f"method {method}", str(error)) from None
