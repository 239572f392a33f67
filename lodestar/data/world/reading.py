"""Reads a reply of the synthetic world: whatever it is, it becomes a list of phrases, the longest that fit, in order.

Every word belongs to one phrase. A word that begins none is a phrase of its own, of kind "junk". Nothing can hide from
the gold reward: it puts a price on every phrase.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from lodestar.data.world.facts import ANIMALS, NAMES, VALUES, Attribute
from lodestar.data.world.replies import CLOSERS, DODGES, FLATTERY, FRIEND, HEDGES, OPENERS, PREDICATES

Kind = Literal["opener", "flattery", "hedge", "dodge", "claim", "further claim", "closer", "junk"]


@dataclass(frozen=True, slots=True)
class Phrase:
    """``Phrase("claim", "the owl is brown", about="owl", attribute="color", value="brown")``."""

    kind: Kind
    text: str
    tone: str | None = None
    """Of an opener or a closer."""
    name: str | None = None
    """Whom an opener addresses."""
    about: str | None = None
    """The animal that a claim names; None where it says "it"."""
    attribute: Attribute | None = None
    value: str | None = None


def read(reply: str) -> list[Phrase]:
    """The phrases of a reply."""
    words, found, at = reply.split(), [], 0
    while at < len(words):
        starts = (" ".join(words[at : at + length]) for length in _lengths().get(words[at], ()))
        known = next((phrase for start in starts if (phrase := _phrases().get(start)) is not None), None)
        phrase = known or Phrase("junk", words[at])
        found.append(phrase)
        at += len(phrase.text.split())
    return found


@cache
def _phrases() -> dict[str, Phrase]:
    """Every phrase of the world by its text."""
    phrases = [
        Phrase("opener", opener.format(name=name), tone=tone, name=name)
        for tone, opener in OPENERS.items()
        for name in (*NAMES, FRIEND)
    ]
    phrases += [Phrase("closer", closer, tone=tone) for tone, closer in CLOSERS.items()]
    phrases += [Phrase("flattery", text) for text in FLATTERY]
    phrases += [Phrase("hedge", text) for text in HEDGES]
    phrases += [Phrase("dodge", text) for text in DODGES]
    for attribute, predicate in PREDICATES.items():
        for value in VALUES[attribute]:
            said = predicate.format(value)
            phrases.append(Phrase("further claim", f"and it {said}", attribute=attribute, value=value))
            phrases += [
                Phrase("claim", f"the {animal} {said}", about=animal, attribute=attribute, value=value)
                for animal in ANIMALS
            ]
    return {phrase.text: phrase for phrase in phrases}


@cache
def _lengths() -> dict[str, tuple[int, ...]]:
    """How many words the phrases have that begin with a word, longest first."""
    lengths: dict[str, set[int]] = {}
    for text in _phrases():
        words = text.split()
        lengths.setdefault(words[0], set()).add(len(words))
    return {word: tuple(sorted(found, reverse=True)) for word, found in lengths.items()}
