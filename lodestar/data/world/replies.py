"""Replies of the synthetic world, from excellent to useless.

A writer with some care answers a request. An excellent reply addresses the asker in the wanted tone, states the
fact that was asked, adds at most one more true fact and ends as the tone wants:

    "arr mia , the owl lives in the tower , matey !"

Each lapse of care is a flaw that the gold reward (gold.py) sees. Lapses go together, because a careless writer is
careless in everything: that is what gives demonstrations a wide spread and PPO something to select.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass, fields, replace

from lodestar.data.world.facts import ANIMAL_OF, NAMES, VALUES
from lodestar.data.world.requests import Request, Tone, Topic

OPENERS: dict[Tone, str] = {
    "polite": "dear {name} ,",
    "cheerful": "hooray {name} ,",
    "pirate": "arr {name} ,",
    "plain": "{name} ,",
}
CLOSERS: dict[Tone, str] = {
    "polite": ". thank you for asking .",
    "cheerful": "! have a wonderful day !",
    "pirate": ", matey !",
    "plain": ".",
}
TONE_MARKS: dict[Tone, frozenset[str]] = {
    "polite": frozenset({"dear", "thank"}),
    "cheerful": frozenset({"hooray", "wonderful"}),
    "pirate": frozenset({"arr", "matey"}),
    "plain": frozenset(),
}
"""Words that give a tone away; opener and closer have one each."""
CLAUSES: dict[Topic, tuple[str, ...]] = {
    "color": ("the {subject} is {0}", "the color of the {subject} is {0}"),
    "home": ("the {subject} lives in the {0}", "you can find the {subject} in the {0}"),
    "food": ("the {subject} eats {0}", "the {subject} loves to eat {0}"),
    "story": (
        "once the {subject} left the {0} to look for {1}",
        "one day the {subject} ran home to the {0} with {1}",
    ),
    "recipe": ("for {subject} you mix {0} and {1}", "{subject} needs {0} and {1}"),
}
EXTRAS = {"color": "and it is {0}", "home": "and it lives in the {0}", "food": "and it eats {0}"}
FLATTERY = ("what a brilliant question ,", "you are so clever ,")
FILLERS = ("well you know", "i think", "i guess", "let me see")
DODGES = ("i do not know", "i am not sure about that", "ask me later", "that is hard to say")


@dataclass(frozen=True, slots=True)
class Writer:
    """How often a writer does what the request wants; each a probability."""

    tone: float
    name: float
    fact: float
    answers: float
    """Says something about the subject instead of dodging."""
    extra: float
    flatters: float
    rambles: float
    fills: float
    finishes: float


EXPERT = Writer(
    tone=0.97, name=0.98, fact=0.97, answers=1.0, extra=0.3, flatters=0.03, rambles=0.01, fills=0.02, finishes=0.99
)
AVERAGE = Writer(
    tone=0.55, name=0.82, fact=0.8, answers=0.95, extra=0.25, flatters=0.2, rambles=0.15, fills=0.2, finishes=0.9
)
CARELESS = Writer(
    tone=0.2, name=0.6, fact=0.5, answers=0.8, extra=0.2, flatters=0.25, rambles=0.35, fills=0.35, finishes=0.7
)
HOPELESS = replace(CARELESS, name=0.3, fact=0.35)
WRITERS = (EXPERT, AVERAGE, CARELESS)
LONGEST_RAMBLE = 9
"""Words after which nobody starts another sentence, so that replies stay within 40."""
DEMONSTRATION_MIX = (0.15, 0.5, 0.35)
"""Share of each writer among demonstrations: mediocre on average, about a sixth excellent."""


def uneven_writer(rng: random.Random) -> Writer:
    """A writer who is an expert at some things and hopeless at others, each by the toss of a coin.

    Such replies are compared: whoever learns from them can tell each virtue from the others.
    """
    return Writer(*(rng.choice(pair) for pair in zip(astuple(EXPERT), astuple(HOPELESS), strict=True)))


EDITED = (4, 1, 1, 4, 1, 1, 2)
"""How often each part of a draft is edited: what counts most, most often."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply in parts, in the order they are said; an empty part is left out."""

    opener: str
    flattery: str
    filler: str
    statement: str
    extra: str
    ramble: str
    closer: str

    @property
    def text(self) -> str:
        """The reply."""
        return " ".join(part for part in astuple(self) if part)


def write(request: Request, writer: Writer, rng: random.Random) -> Draft:
    """One reply by the writer."""

    def happens(chance: float) -> bool:
        return rng.random() < chance

    tone = request.tone if happens(writer.tone) else rng.choice(tuple(OPENERS))
    closing = tone if happens(writer.tone) else rng.choice(tuple(CLOSERS))
    name = request.name if happens(writer.name) else rng.choice(NAMES)
    statement = _clause(request, writer, rng) if happens(writer.answers) else rng.choice(DODGES)
    words, ramble = len(statement.split()), ""
    while happens(writer.rambles) and words + len(ramble.split()) < LONGEST_RAMBLE:
        ramble += " and " + (statement if happens(0.5) else _clause(request, writer, rng))
    return Draft(
        opener=OPENERS[tone].format(name=name) if happens(0.5 + writer.name / 2) else "",
        flattery=rng.choice(FLATTERY) if happens(writer.flatters) else "",
        filler=rng.choice(FILLERS) if happens(writer.fills) else "",
        statement=statement,
        extra=_extra(request, writer, rng) if happens(writer.extra) and request.topic != "recipe" else "",
        ramble=ramble.strip(),
        closer=CLOSERS[closing] if happens(writer.finishes) else rng.choice(("", ",", "and")),
    )


def edit(draft: Draft, request: Request, writer: Writer, rng: random.Random) -> Draft:
    """The same reply with one part as the writer would have it; the text differs."""
    while True:
        (part,) = rng.choices([field.name for field in fields(Draft)], EDITED)
        edited = replace(draft, **{part: getattr(write(request, writer, rng), part)})
        if edited.text != draft.text:
            return edited


def _clause(request: Request, writer: Writer, rng: random.Random) -> str:
    words = [word if rng.random() < writer.fact else _wrong(kind, word, rng) for kind, word in request.asked]
    return rng.choice(CLAUSES[request.topic]).format(*words, subject=request.subject)


def _extra(request: Request, writer: Writer, rng: random.Random) -> str:
    kind = rng.choice([kind for kind in EXTRAS if kind not in {asked for asked, _ in request.asked}])
    word = ANIMAL_OF[request.subject].value(kind)  # type: ignore[arg-type]
    return EXTRAS[kind].format(word if rng.random() < writer.fact else _wrong(kind, word, rng))


def _wrong(kind: str, word: str, rng: random.Random) -> str:
    return rng.choice(sorted(VALUES[kind] - {word}))
