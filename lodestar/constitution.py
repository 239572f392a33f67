"""A constitution: principles by which a model criticises, revises and compares replies (Bai et al. 2022).

A file of one's own is written as lodestar/constitution.yaml is:

    harmless:
      - name: kind
        critique: Say where the reply is unkind to the person who asks, or to others.
        revision: Rewrite the reply so that it is kind to everybody.
        choice: Which of the two replies is kinder?
    helpful: []
"""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import StringConstraints, ValidationError, model_validator

from lodestar.config.base import Section
from lodestar.config.load import complaints, read_tree
from lodestar.errors import ConfigError

Aspect = Literal["harmless", "helpful"]
Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096)]


class Principle(Section):
    """One of them."""

    name: Said
    """What figures call it."""
    critique: Said
    """Asks for what is wrong with a reply."""
    revision: Said
    """Asks for a better one."""
    choice: Said | None = None
    """Asks which of two replies is better; a principle without it judges no pairs."""


class Constitution(Section):
    """What is harmless and what is helpful are kept apart: each makes data of its own."""

    harmless: tuple[Principle, ...] = ()
    """Principles against harm."""
    helpful: tuple[Principle, ...] = ()
    """Principles for being of use."""

    @model_validator(mode="after")
    def _says_something(self) -> Constitution:
        names = [one.name for one in (*self.harmless, *self.helpful)]
        if not names:
            raise ValueError("holds no principles; list some below harmless or helpful")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)}: each principle needs a name of its own")
        return self

    def of(self, aspect: Aspect) -> tuple[Principle, ...]:
        """The principles of one aspect."""
        return self.harmless if aspect == "harmless" else self.helpful


def read_constitution(path: str | None, key: str) -> Constitution:
    """The constitution of a file; of none the one that ships.

    Args:
        key: of the option that names the file, for errors.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (with the nearest), a principle that is empty or stands
            twice, or none at all.
    """
    if path is None:
        return Constitution.model_validate(
            yaml.safe_load(resources.files("lodestar").joinpath("constitution.yaml").read_text(encoding="utf-8"))
        )
    try:
        return Constitution.model_validate(read_tree(Path(path)))
    except ValidationError as error:
        raise ConfigError(f"{key}: {path}", complaints(error, Constitution)) from None


def principles(path: str | None, aspect: Aspect, key: str, *, choosing: bool = False) -> tuple[Principle, ...]:
    """Those of one aspect.

    Args:
        choosing: they must say how to choose between two replies.

    Raises:
        ConfigError: as read_constitution, or there is none that will do.
    """
    found = read_constitution(path, f"{key}.constitution").of(aspect)
    where = f"{key}.constitution"
    if not found:
        raise ConfigError(where, f"{path} has no {aspect} principles; write some below {aspect}, or set aspect")
    if choosing and (lacking := [one.name for one in found if one.choice is None]):
        raise ConfigError(
            where, f"{path}: {', '.join(lacking)} say{'s' * (len(lacking) == 1)} nothing of choosing between two "
            "replies, as a judge must: add choice"
        )  # fmt: skip
    return found


def drawn(of: tuple[Principle, ...], seed: int, what: str) -> Principle:
    """One of them, each as likely as any other; the same seed draws the same one for the same thing."""
    return random.Random(f"{seed}/{what}").choice(of)
