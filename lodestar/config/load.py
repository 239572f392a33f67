"""Reads a run's YAML and command-line overrides; turns pydantic's complaints into sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.queue.address import redacted
from lodestar.recipe.written import DEFAULT, SERVICES, as_stages, merged, recipe, whole


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turns ``["ppo.steps=8", "data.root=x"]`` into nested mappings; values are YAML.

    Raises:
        ConfigError: a pair without ``=``, or two pairs that contradict each other's nesting.
    """
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(pair, "an override is written key=value, for instance ppo.steps=8")
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(key, f"{parent} is already set to a value by another override")
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(key, f"{value!r} is not YAML: {error}") from error
        except RecursionError:
            raise ConfigError(key, "is nested too deeply to be options") from None
    return tree


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> RunConfig:
    """The run configuration of a YAML file, with overrides applied.

    Raises:
        ConfigError: missing file, bad YAML, unknown key (with the nearest known one), wrong type or range.
    """
    return parse_config(read_tree(Path(path)), overrides, str(path))


def read_tree(path: Path) -> dict[str, Any]:
    """The options that a YAML file says, as they are written; raises as load_config."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is not YAML: {error}") from error
    except RecursionError:
        raise ConfigError(str(path), "is nested too deeply to be options") from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), "holds no mapping of options; start with name: my-run")
    return tree


def parse_config(tree: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "") -> RunConfig:
    """The run configuration that a tree of options says, with overrides applied.

    Raises:
        ConfigError: as load_config; it names ``where``.
    """
    try:
        base = whole(tree)
        if not (base.get("stages") or base.get("recipe")):
            base["recipe"] = DEFAULT  # or an override of one stage would be taken for all the stages there are
        return RunConfig.model_validate(merged(base, as_stages(_in_stages(parse_overrides(overrides), tree))))
    except ValidationError as error:
        raise ConfigError(where, complaints(error, elsewhere=_of_stages())) from None
    except ValueError as error:
        raise ConfigError(where, str(error)) from None


def complaints(
    error: ValidationError, of: type[BaseModel] = RunConfig, elsewhere: Mapping[str, str] | None = None
) -> str:
    """Everything that pydantic found wrong with options ``of`` a section, a sentence each.

    Args:
        elsewhere: option → the stage that has it, for one that was written below the wrong stage.
    """
    return "; ".join(_complaint(details, of, elsewhere or {}) for details in error.errors())


def _of_stages() -> dict[str, str]:
    """``services.reward.epochs`` → the stage that has it: ``reward.epochs`` alone is the service's (SERVICES)."""
    from lodestar.recipe.stage import registry

    known = registry()
    return {
        f"services.{name}.{option}": f"{name}: write stages.{name}.{option}"
        for name in SERVICES
        if name in known
        for option in known[name].model_fields
    }


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice in one mapping is an error: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def _in_stages(tree: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by a stage's name alone (``sft.epochs=1``) where they belong: below ``stages``."""
    stages = file.get("stages")
    names = set(stages) if isinstance(stages, Mapping) else set()
    names |= set(recipe(str(file.get("recipe") or DEFAULT))["stages"]) if not names or file.get("recipe") else set()
    known = {*RunConfig.model_fields, *SERVICES}
    short = {key: value for key, value in tree.items() if key in names and key not in known}
    rest = {key: value for key, value in tree.items() if key not in short}
    return merged(rest, {"stages": short}) if short else rest


def dump(config: RunConfig) -> str:
    """The configuration as YAML, every option written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _complaint(details: ErrorDetails, of: type[BaseModel], elsewhere: Mapping[str, str]) -> str:
    location = [str(part) for part in details["loc"]]
    dotted = ".".join(location)
    if details["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _known_keys(of, location[:-1]), n=1)
        hint = f"; did you mean {'.'.join([*location[:-1], nearest[0]])}?" if nearest else ""
        if dotted in elsewhere:
            hint = f": that is an option of stage {elsewhere[dotted]}"
        return f"{dotted}: unknown option{hint}"
    message = details["msg"].removeprefix("Value error, ")
    got = "" if isinstance(details["input"], dict | BaseModel) else f" (got {redacted(repr(details['input']))})"
    return f"{dotted}: {message}{got}" if dotted else message


def _known_keys(section: type[BaseModel], location: list[str]) -> list[str]:
    for part in (name for name in location if not name.isdigit()):
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            return []
        section = sections[0]
    return list(section.model_fields)
