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
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file") from None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is not YAML: {error}") from error
    except RecursionError:
        raise ConfigError(str(path), "is nested too deeply to be options") from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), "holds no mapping of options; start with name: my-run")
    try:
        return RunConfig.model_validate(_merge(tree, parse_overrides(overrides)))
    except ValidationError as error:
        complaints = [_complaint(details) for details in error.errors()]
        raise ConfigError(str(path), "; ".join(complaints)) from None


def dump(config: RunConfig) -> str:
    """The configuration as YAML, every option written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict):
            merged[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _complaint(details: ErrorDetails) -> str:
    location = [str(part) for part in details["loc"]]
    dotted = ".".join(location)
    if details["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
        hint = f"; did you mean {'.'.join([*location[:-1], nearest[0]])}?" if nearest else ""
        return f"{dotted}: unknown option{hint}"
    message = details["msg"].removeprefix("Value error, ")
    got = "" if isinstance(details["input"], dict | BaseModel) else f" (got {redacted(repr(details['input']))})"
    return f"{dotted}: {message}{got}" if dotted else message


def _known_keys(location: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in (name for name in location if not name.isdigit()):
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            return []
        section = sections[0]
    return list(section.model_fields)
