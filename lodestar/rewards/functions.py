"""Rewards by a Python function of one's own: ``package.module:name`` or ``path/to/file.py:name``.

    def politeness(prompts: Sequence[str], completions: Sequence[str]) -> Sequence[float]:
        return [float("please" in completion) for completion in completions]

A module is one that is installed or on PYTHONPATH, else one of the current folder, which is looked at last: a file
there shadows nothing. That holds for ``run``, ``serve`` and pods alike; files are relative to the current folder, too.

It may ask for further columns of the prompts' rows by their names, or for all of them:

    def right(prompts, completions, answer):                 # a list with each row's answer, None where it has none
        return [float(one == text.strip()) for one, text in zip(answer, completions)]

    def checked(prompts, completions, **columns): ...

It is called with lists of equal length, off the event loop, in one thread, and may be slow. What it raises or returns
wrongly is an error that names the source. It is code of whoever writes the run's configuration, and is trusted as such.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lodestar.errors import ConfigError, SourceFailed

RewardFunction = Callable[..., Sequence[float]]
Rows = Sequence[Mapping[str, Any]]
"""Columns of each completion's prompt."""


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
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    module = _from_file(field, Path(place)) if place.endswith(".py") else _from_name(field, place)
    function = getattr(module, name, None)
    if function is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        near = ", ".join(sorted(key for key in own if inspect.isfunction(getattr(module, key)))[:5])
        raise ConfigError(field, f"{place} has no {name}" + (f"; it has {near}" if near else ""))
    _check(field, spec, function)
    return function  # type: ignore[no-any-return]


def call(
    source: str,
    function: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    rows: Rows = (),
) -> list[float]:
    """One finite number per completion; ``rows`` are the prompts' further columns, of which it gets what it names.

    Raises:
        SourceFailed: the function raised, or returned something else, or needs a column that no row has; the message
            names the source.
    """
    columns = _columns(source, function, rows or [{}] * len(prompts))
    try:
        returned: Any = function(list(prompts), list(completions), **columns)
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


def _columns(source: str, function: RewardFunction, rows: Rows) -> dict[str, list[Any]]:
    """The columns that the function's signature asks for, as lists parallel to the completions."""
    needed, optional, everything = _asked(function)
    present = dict.fromkeys(name for row in rows for name in row)
    if missing := [name for name in needed if name not in present]:
        have = ", ".join(present) or "no further columns"
        raise SourceFailed(source, f"asks for the column {missing[0]}, which no prompt here has: the rows have {have}")
    names = list(present) if everything else [name for name in present if name in needed or name in optional]
    return {name: [row.get(name) for row in rows] for name in names if name not in ("prompts", "completions")}


def _asked(function: object) -> tuple[list[str], list[str], bool]:
    """Columns that a function needs, those that it takes, and whether it takes all, after prompts and completions."""
    try:
        parameters = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    except ValueError:
        return [], [], False
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    further = [one for one in places[2:] if one.kind is one.POSITIONAL_OR_KEYWORD]
    further += [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    needed = [one.name for one in further if one.default is one.empty]
    optional = [one.name for one in further if one.default is not one.empty]
    return needed, optional, any(one.kind is one.VAR_KEYWORD for one in parameters)


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
    wanted = (
        "it is called as name(prompts, completions) with two lists of text, and with lists of those columns of the "
        "prompts' rows that it names, and returns a list of numbers"
    )
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
        signature.bind([], [], **{name: [] for name in _asked(function)[0]})
    except TypeError as error:
        raise ConfigError(field, f"{spec}{signature} does not take these arguments ({error}); {wanted}") from error
