"""Draws a corpus from the synthetic world: prompts, demonstrations of mixed quality, and the panel's comparisons."""

from __future__ import annotations

import random
from itertools import cycle

from lodestar.config import DataConfig
from lodestar.data.corpus import Corpus
from lodestar.data.schema import Example
from lodestar.data.world import Request, compare, edit, every_request, write
from lodestar.data.world.replies import DEMONSTRATION_MIX, WRITERS, uneven_writer
from lodestar.records import Demonstration, Feedback


def draw_corpus(config: DataConfig, seed: int) -> Corpus:
    """Demonstrations and comparisons over requests in a random order; the same seed draws the same corpus."""
    rng = random.Random(f"{seed}/world")
    requests = every_request()
    rng.shuffle(requests)
    order = cycle(requests)
    return Corpus(
        feedback=[_comparison(next(order), rng, i) for i in range(config.comparison_rows)],
        demonstrations=[_demonstration(next(order), rng, i) for i in range(config.demonstration_rows)],
        prompts=[Example(request.text, request.text) for request in requests],
    )


def _demonstration(request: Request, rng: random.Random, number: int) -> Example[Demonstration]:
    (writer,) = rng.choices(WRITERS, DEMONSTRATION_MIX)
    reply = write(request, writer, rng).text
    return Example(request.text, Demonstration(request.text, reply, id=f"demonstration-{number}"))


def _comparison(request: Request, rng: random.Random, number: int) -> Example[Feedback]:
    """Half of the pairs are two edits of one reply, which show what each part is worth; the others differ in much."""
    first = second = write(request, uneven_writer(rng), rng)
    if rng.random() < 0.5:
        second = edit(first, request, uneven_writer(rng), rng)
    while second.text == first.text:
        second = write(request, uneven_writer(rng), rng)
    row = compare(request.text, first.text, second.text, rng, row=f"comparison-{number}")
    return Example(request.text, row)
