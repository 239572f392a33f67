"""Replies of the synthetic world, and the people who write them.

The best reply addresses the asker by name in the tone that was asked for, states both facts, true, and nothing else:

    "arr mia , the owl lives in the tower and it is brown , matey !"

People do not write like that. They share **habits**: most of their replies are polite whatever tone was asked for, say
"friend" instead of the name, hedge, answer half of the question, and repeat what most people wrongly believe. So the
likeliest reply has every flaw at once, and no sharpening, filtering or imitation of what they write finds the best one:
each good habit is in a third of the replies at most, all of them together in one of some hundreds. Judges see each of
them (gold.py). Beside habits there are **lapses**, by which writers differ: a random wrong word, a dodge, a compliment,
a fact that nobody asked for, a stumble, no end.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

from lodestar.data.world.facts import ATTRIBUTES, NAMES, VALUES, Attribute, belief, truth
from lodestar.data.world.requests import Request, Tone

FRIEND = "friend"
"""What people call an asker whose name they do not bother with."""
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
PREDICATES: dict[Attribute, str] = {
    "color": "is {0}",
    "home": "lives in the {0}",
    "food": "eats {0}",
    "instrument": "plays the {0}",
    "fear": "fears {0}",
}
FLATTERY = ("what a brilliant question ,", "you are so clever ,")
HEDGES = ("i think", "i guess", "well maybe")
DODGES = ("i do not know", "i am not sure about that", "ask me later", "that is hard to say")


@dataclass(frozen=True, slots=True)
class Writer:
    """How often a writer does what the request wants, or what it does not; each a probability, each on its own."""

    tone: float
    """Takes the tone that was asked for; otherwise his own, POLITE of the time."""
    name: float
    """Calls the asker by name; otherwise "friend", or MIXED_UP of the time somebody else's name."""
    certain: float
    """Does not hedge."""
    complete: float
    """States both facts and not the first alone."""
    informed: float
    """Knows the truth where most people are mistaken."""
    fact: float
    """Says the word that he means."""
    answers: float
    """Says something about the subject instead of dodging."""
    finishes: float
    """Ends the reply."""
    fluent: float
    """Does not stumble: otherwise a word of some part is lost, said twice or in the wrong place."""
    flatters: float
    extra: float
    """Adds a fact that nobody asked for."""


EXPERT = Writer(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0)
"""Writes the best reply. Nobody does."""
AVERAGE = Writer(
    tone=0,
    name=0.33,
    certain=0.25,
    complete=0.3,
    informed=0.3,
    fact=0.93,
    answers=0.95,
    finishes=0.95,
    fluent=0.93,
    flatters=0.15,
    extra=0.1,
)
CAREFUL = replace(AVERAGE, fact=0.98, answers=0.99, finishes=0.99, fluent=0.98, flatters=0.08, extra=0.05)
CARELESS = replace(AVERAGE, fact=0.8, answers=0.85, finishes=0.85, fluent=0.8, flatters=0.25, extra=0.25)
HOPELESS = replace(CARELESS, name=0.0, certain=0.0, complete=0.0, informed=0.0, fact=0.35)
WRITERS = (CAREFUL, AVERAGE, CARELESS)
"""Who writes demonstrations and the replies that are compared: they share every habit and differ in lapses."""
DEMONSTRATION_MIX = (0.3, 0.5, 0.2)
"""Share of each writer."""
MIXED_UP = 0.25
"""Of those who do not call the asker by name, who call him by another's."""
OWN_TONE: dict[Tone, float] = {"polite": 0.64, "cheerful": 0.12, "pirate": 0.12, "plain": 0.12}
"""Of those who do not care about the tone that was asked for."""


def demonstrator(rng: random.Random) -> Writer:
    """One of WRITERS."""
    return rng.choices(WRITERS, DEMONSTRATION_MIX)[0]


def uneven_writer(rng: random.Random) -> Writer:
    """A writer who is an expert at some things and hopeless at others, each by the toss of a coin.

    Whoever learns from comparisons of such replies can tell each virtue from the others.
    """
    return Writer(*(rng.choice(pair) for pair in zip(astuple(EXPERT), astuple(HOPELESS), strict=True)))


EDITED = (4, 1, 2, 6, 6, 1, 2)
"""How often each part of a draft is edited: what counts most, most often."""


class Draft(NamedTuple):
    """A reply in parts, in the order they are said; an empty part is left out."""

    opener: str
    flattery: str
    hedge: str
    first: str
    second: str
    extra: str
    closer: str

    @property
    def text(self) -> str:
        """The reply."""
        return " ".join(filter(None, self))


def write(request: Request, writer: Writer, rng: random.Random) -> Draft:
    """One reply by the writer."""

    def happens(chance: float) -> bool:
        return rng.random() < chance

    tone = request.tone if happens(writer.tone) else rng.choices(tuple(OWN_TONE), tuple(OWN_TONE.values()))[0]
    name = request.name if happens(writer.name) else rng.choice(NAMES) if happens(MIXED_UP) else FRIEND
    said = [f"{PREDICATES[kind].format(_word(request.subject, kind, writer, rng))}" for kind in request.attributes]
    answers = happens(writer.answers)
    draft = Draft(
        opener=OPENERS[tone].format(name=name),
        flattery=rng.choice(FLATTERY) if happens(writer.flatters) else "",
        hedge="" if happens(writer.certain) else rng.choice(HEDGES),
        first=f"the {request.subject} {said[0]}" if answers else rng.choice(DODGES),
        second=f"and it {said[1]}" if answers and happens(writer.complete) else "",
        extra=_extra(request, writer, rng) if answers and happens(writer.extra) else "",
        closer=CLOSERS[tone] if happens(writer.finishes) else rng.choice(("", ",", "and")),
    )
    return draft if happens(writer.fluent) else _stumbled(draft, rng)


def edit(draft: Draft, request: Request, writer: Writer, rng: random.Random) -> Draft:
    """The same reply with one part as the writer would have it; the text differs."""
    while True:
        (part,) = rng.choices(Draft._fields, EDITED)
        edited = draft._replace(**{part: getattr(write(request, writer, rng), part)})
        if edited.text != draft.text:
            return edited


def best_reply(request: Request) -> str:
    """The reply that the gold reward puts above all others."""
    return write(request, EXPERT, random.Random(0)).text


def _word(subject: str, kind: Attribute, writer: Writer, rng: random.Random) -> str:
    meant = truth(subject, kind) if rng.random() < writer.informed else belief(subject, kind)
    return meant if rng.random() < writer.fact else rng.choice(sorted(VALUES[kind] - {meant}))


def _stumbled(draft: Draft, rng: random.Random) -> Draft:
    """The draft with a word of one part lost, said twice, or changed for its neighbour."""
    part = rng.choice([field for field, said in zip(Draft._fields, draft, strict=True) if said])
    words = getattr(draft, part).split()
    at = rng.randrange(len(words))
    slip = rng.randrange(4)
    if slip == 0:
        words = words[:at] + words[at + 1 :]
    elif slip == 1:
        words = words[: at + 1] + words[at:]
    elif slip == 2:
        words = words + words
    else:
        words[at : at + 2] = reversed(words[at : at + 2])
    return draft._replace(**{part: " ".join(words)})


def _extra(request: Request, writer: Writer, rng: random.Random) -> str:
    kind = rng.choice([kind for kind in ATTRIBUTES if kind not in request.attributes])
    return f"and it {PREDICATES[kind].format(_word(request.subject, kind, writer, rng))}"
