"""Prompts of the synthetic world: who asks, in which tone the answer is wanted, and what about.

    "please answer mia like a pirate : where does the owl live ?"

``Request.text`` writes a prompt and ``parse`` reads it back, so that the gold reward needs nothing but text.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal

from lodestar.data.world.facts import ANIMAL_OF, ANIMALS, DISHES, NAMES, VALUES, Attribute

Tone = Literal["polite", "cheerful", "pirate", "plain"]
Topic = Literal["color", "home", "food", "story", "recipe"]

TONE_PHRASES: dict[Tone, str] = {
    "polite": "politely",
    "cheerful": "cheerfully",
    "pirate": "like a pirate",
    "plain": "in plain words",
}
QUESTIONS: dict[Topic, str] = {
    "color": "what color is the {subject} ?",
    "home": "where does the {subject} live ?",
    "food": "what does the {subject} eat ?",
    "story": "tell a story about the {subject} !",
    "recipe": "how do i make {subject} ?",
}
FRAMES = ("answer", "please answer", "kindly answer", "now answer", "quickly answer", "hello , answer")


@dataclass(frozen=True, slots=True)
class Request:
    """``Request("mia", "pirate", "home", "owl", "please answer")``."""

    name: str
    tone: Tone
    topic: Topic
    subject: str
    """An animal, or a dish when the topic is recipe."""
    frame: str = "answer"

    @property
    def text(self) -> str:
        """The prompt."""
        question = QUESTIONS[self.topic].format(subject=self.subject)
        return f"{self.frame} {self.name} {TONE_PHRASES[self.tone]} : {question}"

    @property
    def asked(self) -> tuple[tuple[str, str], ...]:
        """What a right reply must say: (kind of value, word) pairs, one or two."""
        if self.topic == "recipe":
            return tuple(("ingredient", word) for word in DISHES[self.subject])
        attributes: tuple[Attribute, ...] = ("home", "food") if self.topic == "story" else (self.topic,)
        return tuple((attribute, ANIMAL_OF[self.subject].value(attribute)) for attribute in attributes)

    def is_true(self, kind: str, word: str) -> bool:
        """Whether the word, a value of that kind, is true of the subject (asked or not)."""
        if self.topic == "recipe":
            return kind == "ingredient" and word in DISHES[self.subject]
        return kind != "ingredient" and word in VALUES[kind] and word == ANIMAL_OF[self.subject].value(kind)  # type: ignore[arg-type]


def every_request() -> list[Request]:
    """All 5,568 requests of the world, in a fixed order."""
    topics = [(topic, animal.name) for topic in ("color", "home", "food", "story") for animal in ANIMALS]
    topics += [("recipe", dish) for dish in DISHES]
    return [
        Request(name, tone, topic, subject, frame)  # type: ignore[arg-type]
        for (topic, subject), name, tone, frame in itertools.product(topics, NAMES, TONE_PHRASES, FRAMES)
    ]


_TONE_OF = {phrase: tone for tone, phrase in TONE_PHRASES.items()}
_HEAD = re.compile(rf"({'|'.join(reversed(FRAMES))}) ({'|'.join(NAMES)}) ({'|'.join(_TONE_OF)}) : ")
_QUESTIONS = {
    topic: re.compile(re.escape(question).replace(re.escape("{subject}"), "([a-z]+)"))
    for topic, question in QUESTIONS.items()
}


def parse(text: str) -> Request:
    """The request of a prompt; a chat template's marks around it do no harm.

    Raises:
        ValueError: the text holds no request of this world.
    """
    head = _HEAD.search(text)
    if head is not None:
        for topic, pattern in _QUESTIONS.items():
            question = pattern.match(text, head.end())
            subjects = DISHES if topic == "recipe" else ANIMAL_OF
            if question is not None and question[1] in subjects:
                return Request(head[2], _TONE_OF[head[3]], topic, question[1], head[1])
    raise ValueError(f"not a prompt of the synthetic world: {text!r}")
