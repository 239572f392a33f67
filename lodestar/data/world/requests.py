"""Prompts of the synthetic world: who asks, in which tone the answer is wanted, and for which two facts.

    "what is the home and the color of the owl ? answer mia piratically"

``Request.text`` writes a prompt and ``parse`` reads it back, so that the gold reward needs nothing but text.
``Request.content`` is what prompts are kept apart by: the animal and the two facts, whoever asks, in whatever tone
and order.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lodestar.data.world.facts import ANIMALS, ATTRIBUTES, NAMES, Attribute, truth

Tone = Literal["polite", "cheerful", "pirate", "plain"]

MANNERS: dict[Tone, str] = {
    "polite": "politely",
    "cheerful": "cheerfully",
    "pirate": "piratically",
    "plain": "plainly",
}
"""How a prompt asks for a tone: its last word, where the reply begins."""


@dataclass(frozen=True, slots=True)
class Request:
    """``Request("mia", "pirate", "owl", ("home", "color"))``."""

    name: str
    tone: Tone
    subject: str
    attributes: tuple[Attribute, Attribute]
    """The two facts that are asked for."""

    @property
    def text(self) -> str:
        """The prompt."""
        facts = " and the ".join(self.attributes)
        return f"what is the {facts} of the {self.subject} ? answer {self.name} {MANNERS[self.tone]}"

    @property
    def asked(self) -> dict[Attribute, str]:
        """The two facts that a right reply states: attribute → word."""
        return {attribute: truth(self.subject, attribute) for attribute in self.attributes}

    @property
    def content(self) -> str:
        """The animal and the facts asked for, in a fixed order: ``"owl: color home"``."""
        return f"{self.subject}: {' '.join(sorted(self.attributes, key=ATTRIBUTES.index))}"


def every_request() -> list[Request]:
    """All 7,680 requests of the world, of 120 contents, in a fixed order."""
    pairs = itertools.permutations(ATTRIBUTES, 2)
    return [
        Request(name, tone, subject, pair)
        for subject, pair, name, tone in itertools.product(ANIMALS, pairs, NAMES, MANNERS)
    ]


_TONE_OF = {phrase: tone for tone, phrase in MANNERS.items()}
_ATTRIBUTE_OF: dict[str, Attribute] = {attribute: attribute for attribute in ATTRIBUTES}
_PROMPT = re.compile(
    rf"what is the ({'|'.join(ATTRIBUTES)}) and the (?!\1)({'|'.join(ATTRIBUTES)}) of the ({'|'.join(ANIMALS)}) \? "
    rf"answer ({'|'.join(NAMES)}) ({'|'.join(_TONE_OF)})"
)


@lru_cache(maxsize=16_384)
def parse(text: str) -> Request:
    """The request of a prompt; a chat template's marks around it do no harm.

    Raises:
        ValueError: the text holds no request of this world.
    """
    found = _PROMPT.search(text)
    if found is None:
        raise ValueError(f"not a prompt of the synthetic world: {text!r}")
    first, second, subject, name, tone = found.groups()
    return Request(name, _TONE_OF[tone], subject, (_ATTRIBUTE_OF[first], _ATTRIBUTE_OF[second]))
