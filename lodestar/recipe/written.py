"""How a run is written: recipes that ship, a file's own options over them, and the YAML of before recipes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

DEFAULT = "instruct-gpt"
SERVICES = ("policy", "reward", "reference", "learner", "rollout", "queue")
_STAGES = {
    "data": "data",
    "pretrain": "pretrain",
    "sft": "sft",
    "reward_model": "reward",
    "ppo": "ppo",
    "evaluation": "evaluate",
}
"""Section of before recipes → the stage whose options it held."""
_RUNNING = ("watch_every", "watch_prompts")
"""Options of ``evaluation:`` that are PPO's now."""


def recipes() -> list[str]:
    """Names of the recipes that ship."""
    folder = resources.files("lodestar.recipes")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe(name: str) -> dict[str, Any]:
    """A recipe's tree: ``stages``, and options of services where the method needs them.

    Raises:
        ValueError: there is no such recipe; says the nearest.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"recipe: there is no recipe {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    text = (resources.files("lodestar.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def nearest(name: str, known: Any) -> str:
    """``; did you mean …?`` where a known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def with_recipe(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with its recipe's stages under its own options; without ``recipe`` and ``stages`` the default's.

    Raises:
        ValueError: no such recipe, or options of a stage that the recipe does not have.
    """
    name = tree.get("recipe")
    if name is None and tree.get("stages"):
        return dict(tree)
    base = recipe(str(name or DEFAULT))
    own, stages = tree.get("stages") or {}, base["stages"]
    if unknown := [stage for stage in own if stage not in stages]:
        raise ValueError(
            f"stages.{unknown[0]}: recipe {name or DEFAULT} has no such stage{nearest(unknown[0], stages)}; it has "
            f"{', '.join(stages)}. To compose stages of your own, leave recipe out and list them all under stages"
        )
    return merged(base, {**tree, "recipe": None, "stages": own})


def written_as_before(tree: Mapping[str, Any]) -> list[str]:
    """The keys of before recipes that a tree has."""
    return [key for key in tree if key in _STAGES or key in SERVICES]


def as_stages(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Options, those of a file or those over it, with every section of before recipes where it stands now.

    Raises:
        ValueError: a section that is no mapping.
    """
    old = written_as_before(tree)
    if not old:
        return dict(tree)
    new = {key: value for key, value in tree.items() if key not in old}
    stages = {_STAGES[key]: _stage(key, tree[key]) for key in old if key in _STAGES}
    services = {key: tree[key] for key in old if key in SERVICES}
    evaluation = stages.get("evaluate") or {}
    running = {name.removeprefix("watch_"): evaluation.pop(name) for name in _RUNNING if name in evaluation}
    if running:
        stages["ppo"] = merged({"running": running}, stages.get("ppo") or {})
    if "prompts" in evaluation:
        stages["data"] = merged({"evaluation_rows": evaluation.pop("prompts")}, stages.get("data") or {})
    sources = (services.get("reward") or {}).get("sources")
    if sources and not any(_is_own(source) for source in sources):
        stages["reward"] = None
    new["stages"] = merged(new.get("stages") or {}, stages)
    if services:
        new["services"] = merged(new.get("services") or {}, services)
    return new


def whole(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A file's tree as it is written now: one of before recipes, which had no list of stages, takes the default recipe.

    Raises:
        ValueError: as :func:`as_stages`.
    """
    new = as_stages(tree)
    if new.get("stages") and not (tree.get("stages") or tree.get("recipe")):
        new["recipe"] = DEFAULT
    return new


def _stage(key: str, options: Any) -> Any:
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise ValueError(f"{key}: must be a mapping of options, is {options!r}")
    options = dict(options)
    if key == "data" and "kind" in options:
        options["source"] = options.pop("kind")
    return options


def _is_own(source: Any) -> bool:
    """Whether a reward source is the run's own reward model."""
    return isinstance(source, Mapping) and source.get("kind", "model") == "model" and not source.get("paths")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, mapping by mapping; a null takes the place of what it stands over."""
    whole = dict(base)
    for key, value in over.items():
        below = whole.get(key)
        if isinstance(value, Mapping):
            whole[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            whole[key] = value
    return whole
