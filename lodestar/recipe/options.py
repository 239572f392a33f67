"""Every option as a page that people read: name, what it may be, default and meaning, from the sections themselves."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lodestar.config.run import RunConfig
from lodestar.errors import ConfigError
from lodestar.numerals import number
from lodestar.recipe.stage import registry
from lodestar.recipe.written import nearest

_WORDS: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "anything"}
_SIGNS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
"""Attribute of a bound in a field's metadata → how it is written."""
RUN = "run"
"""Name of the page of what stands at the top of a run's YAML."""


@dataclass(frozen=True, slots=True)
class Option:
    """``Option("kl.coefficient", "number ≥ 0", "0.05", "β.")``."""

    name: str
    may_be: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class OptionPage:
    """The options of one section."""

    name: str
    """As it is written in a YAML: ``ppo``, ``services.policy``, ``model``."""
    says: str
    options: tuple[Option, ...]


def pages() -> dict[str, OptionPage]:
    """Every page by its name: the run's, each stage's, each service's."""
    found = [OptionPage(RUN, _first(RunConfig), tuple(_top()))]
    found.append(_page("model", RunConfig.model_fields["model"].annotation))
    found += [_page(name, stage) for name, stage in registry().items()]
    found += [_page(f"services.{name}", field.annotation) for name, field in _services() if _is_section(field)]
    return {page.name: page for page in found}


def page(name: str) -> OptionPage:
    """A page, or the part of one: ``ppo``, ``ppo.kl``, ``services.reward``.

    Raises:
        ConfigError: there is no such page or option; says the nearest.
    """
    known = pages()
    asked = name.removeprefix("stages.")
    if asked in known:
        return known[asked]
    for whole in sorted(known.values(), key=lambda one: -len(one.name)):
        if asked.startswith(f"{whole.name}."):
            part = asked.removeprefix(f"{whole.name}.")
            options = tuple(one for one in whole.options if one.name == part or one.name.startswith(f"{part}."))
            if options:
                return OptionPage(whole.name, whole.says, options)
            raise ConfigError(name, f"{whole.name} has no such option{nearest(part, [o.name for o in whole.options])}")
    raise ConfigError(name, f"has no page of options{nearest(asked, known)}; there are {', '.join(known)}")


def markdown() -> str:
    """All pages as docs/options.md."""
    lines = ["# Options", "", *_head(), ""]
    for one in pages().values():
        lines += [f"## {one.name}", "", one.says, "", "| Option | May be | Default | |", "|---|---|---|---|"]
        lines += [f"| `{o.name}` | {_cell(o.may_be)} | {_cell(o.default)} | {_cell(o.meaning)} |" for o in one.options]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _head() -> list[str]:
    return [
        "Every option of a run's YAML, made from the code by `lodestar config options --markdown`; a test compares.",
        "A stage's stand below `stages.NAME`, a service's below `services.NAME`. On the command line they go after the",
        "file: `lodestar run my-run.yaml ppo.kl.coefficient=0.1`.",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _page(name: str, section: Any) -> OptionPage:
    return OptionPage(name, _first(section), tuple(_options(section)))


def _first(section: Any) -> str:
    """The docstring's first paragraph, in a line."""
    return " ".join((inspect.getdoc(section) or "").split("\n\n")[0].replace("``", "`").split())


def _top() -> Iterator[Option]:
    for name, field in RunConfig.model_fields.items():
        if name not in ("model", "services"):
            yield _option(name, field)
    yield from (_option(f"services.{name}", field) for name, field in _services() if not _is_section(field))


def _services() -> Iterable[tuple[str, FieldInfo]]:
    services: Any = RunConfig.model_fields["services"].annotation
    return services.model_fields.items()  # type: ignore[no-any-return]


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _options(section: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    for name, field in section.model_fields.items():
        inner = [one for one in _parts(field.annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
        if inner and get_origin(field.annotation) is not tuple:
            if type(None) in _parts(field.annotation):
                yield Option(f"{prefix}{name}", "a section, or unset", "unset", _meaning(field))
            yield from _options(inner[0], f"{prefix}{name}.")
        elif name != "use" or not prefix:
            yield _option(f"{prefix}{name}", field)


def _option(name: str, field: FieldInfo) -> Option:
    return Option(name, _may_be(field), _default(field), _meaning(field))


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").replace("``", "`").split())


def _may_be(field: FieldInfo) -> str:
    signs = [
        f"{sign} {number(getattr(bound, attribute))}"
        for bound in field.metadata
        for attribute, sign in _SIGNS
        if hasattr(bound, attribute)
    ]
    kinds = [one for one in _parts(field.annotation) if one is not type(None)]
    words = " or ".join(dict.fromkeys(map(_word, kinds)))
    unset = ", or unset" if type(None) in _parts(field.annotation) else ""
    return f"{words}{' ' if signs else ''}{', '.join(signs)}{unset}"


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _word(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " | ".join(map(str, get_args(kind)))
    if origin in (tuple, list):
        return f"list of {_plural(_word(get_args(kind)[0]))}"
    if origin in (dict, Mapping) or kind in (dict, typing.Mapping):
        values = get_args(kind)
        inner = " or ".join(dict.fromkeys(map(_word, _parts(values[1])))) if values else "anything"
        return f"mapping of name to {inner}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"mapping ({', '.join(kind.model_fields)})"
    return _WORDS.get(kind, "file or folder" if getattr(kind, "__name__", "") == "Path" else str(kind))


def _plural(word: str) -> str:
    return f"{word}s" if word in ("number", "whole number", "mapping") else word


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | dict) and not value:
        return "empty"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
