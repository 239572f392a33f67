"""Draws a corpus from the synthetic world: prompts, demonstrations with shared habits, and the panel's comparisons.

A family is a content: an animal and the two facts asked about it, whoever asks in whatever tone and order. Families
are what the data stage keeps apart, so a held-out prompt asks for a combination of facts that no training row holds.
"""

from __future__ import annotations

import itertools
import random

from lodestar.config import DataConfig
from lodestar.data.corpus import Corpus
from lodestar.data.schema import Example
from lodestar.data.world import Request, compare, edit, every_request, write
from lodestar.data.world.facts import ATTRIBUTES
from lodestar.data.world.replies import demonstrator
from lodestar.records import Demonstration, Feedback


def draw_corpus(config: DataConfig, seed: int) -> Corpus:
    """Demonstrations and comparisons over requests in a random order; the same seed draws the same corpus.

    Demonstrations are of all contents, comparisons of half of them: PPO's prompts are of the others.
    """
    requests = every_request()
    random.Random(f"{seed}/world").shuffle(requests)
    comparing, demonstrating = (random.Random(f"{seed}/world/{what}") for what in ("comparisons", "demonstrations"))
    shown = itertools.cycle(requests)
    compared = itertools.cycle([request for request in requests if _is_compared(request)])
    return Corpus(
        feedback=[_comparison(next(compared), comparing, i) for i in range(config.comparison_rows)],
        demonstrations=[_demonstration(next(shown), demonstrating, i) for i in range(config.demonstration_rows)],
        prompts=[Example(request.content, request.text) for request in requests],
    )


def _is_compared(request: Request) -> bool:
    """Facts that are neighbours in the ring of attributes: of an animal's ten pairs five, with every fact in two."""
    first, second = (ATTRIBUTES.index(attribute) for attribute in request.attributes)
    return (first - second) % len(ATTRIBUTES) in (1, len(ATTRIBUTES) - 1)


def _demonstration(request: Request, rng: random.Random, number: int) -> Example[Demonstration]:
    reply = write(request, demonstrator(rng), rng).text
    return Example(request.content, Demonstration(request.text, reply, id=f"demonstration-{number}"))


def _comparison(request: Request, rng: random.Random, number: int) -> Example[Feedback]:
    """Both replies are by the people who demonstrate. Half of the pairs are a reply and an edit of it, which show what
    each part is worth; the others differ in much."""
    first = second = write(request, demonstrator(rng), rng)
    if rng.random() < 0.5:
        second = edit(first, request, demonstrator(rng), rng)
    while second.text == first.text:
        second = write(request, demonstrator(rng), rng)
    row = compare(request.text, first.text, second.text, rng, row=f"comparison-{number}")
    return Example(request.content, row)
