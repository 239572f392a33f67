"""Rewards by a Python function of one's own: ``package.module:name`` or ``path/to/file.py:name``.

    def politeness(prompts: Sequence[str], completions: Sequence[str]) -> Sequence[float]:
        return [float("please" in completion) for completion in completions]

It is called with lists of equal length, off the event loop, in one thread, and may be slow. What it raises or returns
wrongly is an error that names the source. It is code of whoever writes the run's configuration, and is trusted as such.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lodestar.errors import ConfigError, SourceFailed

RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


def load_function(source: str, spec: str) -> RewardFunction:
    """The function of ``spec``, for the source of that name.

    Raises:
        ConfigError: no such file, module or name, an import that fails, or a signature that does not take
            (prompts, completions).
    """
    field = f"reward.sources {source}.function"
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(field, f"{spec!r} must be module:name or file.py:name")
    module = _from_file(field, Path(place)) if place.endswith(".py") else _from_name(field, place)
    function = getattr(module, name, None)
    if function is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        near = ", ".join(sorted(key for key in own if inspect.isfunction(getattr(module, key)))[:5])
        raise ConfigError(field, f"{place} has no {name}" + (f"; it has {near}" if near else ""))
    _check(field, spec, function)
    return function  # type: ignore[no-any-return]


def call(source: str, function: RewardFunction, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """One finite number per completion.

    Raises:
        SourceFailed: the function raised, or returned something else; the message names the source.
    """
    try:
        returned: Any = function(list(prompts), list(completions))
    except Exception as error:
        raise SourceFailed(source, f"raised {type(error).__name__}: {error}") from error
    try:
        values = [float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise SourceFailed(
            source, f"must return one number per completion, returned {type(returned).__name__} ({error})"
        ) from error
    if len(values) != len(completions):
        raise SourceFailed(source, f"returned {len(values)} numbers for {len(completions)} completions")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise SourceFailed(source, f"returned {value} for completion {i}: a reward must be finite")
    return values


def source_digest(spec: str) -> str:
    """Hex sha256 of a file's text, so that a resumed run sees its change; of the name alone for a module's function."""
    path = Path(spec.rpartition(":")[0])
    content = path.read_bytes() if path.suffix == ".py" and path.is_file() else spec.encode()
    return hashlib.sha256(content).hexdigest()


def _from_file(field: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(field, f"{path}: no such file (relative paths start at the server's working directory)")
    name = f"lodestar_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(field, f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _from_name(field: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(field, f"module {name} cannot be imported: {type(error).__name__}: {error}") from error


def _check(field: str, spec: str, function: object) -> None:
    wanted = "it is called as name(prompts, completions) with two lists of text and returns a list of numbers"
    if not callable(function):
        raise ConfigError(field, f"{spec} is a {type(function).__name__} and cannot be called; {wanted}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) or inspect.isclass(function):
        sort = "a class" if inspect.isclass(function) else "asynchronous"
        raise ConfigError(field, f"{spec} is {sort}; {wanted}")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # built in C: its first call tells
    try:
        signature.bind([], [])
    except TypeError as error:
        raise ConfigError(field, f"{spec}{signature} does not take these arguments ({error}); {wanted}") from error
