"""The formats that files of feedback, demonstrations and prompts are read in: one small file for each, one table here.

A row is told by its columns. The first format of the table that knows it converts it to rows of lodestar.data.schema,
which checks them like anybody's own; a row that none knows must be of that schema itself.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lodestar.data.formats import (
    alpaca,
    alpacafarm,
    arena,
    argilla,
    beavertails,
    doccano,
    dolly,
    fine_grained,
    helpsteer,
    hhh,
    labelstudio,
    likert,
    nectar,
    oasst,
    openai,
    orca,
    pandalm,
    plain,
    prism,
    prodigy,
    red_team,
    sharegpt,
    shp,
    stack_exchange,
    summarize,
    summeval,
    taskmaster,
    tulu,
    ultrafeedback,
    verl,
    webgpt,
)
from lodestar.data.formats.base import Format, Numbered
from lodestar.data.formats.plain import PLAIN
from lodestar.data.verdicts import Row

__all__ = ["FORMATS", "PLAIN", "Format", "gather_ratings", "nearest", "recognise"]

FORMATS: tuple[Format, ...] = (
    *oasst.FORMATS,
    *fine_grained.FORMATS,
    *pandalm.FORMATS,
    *tulu.FORMATS,
    *likert.FORMATS,
    *summeval.FORMATS,
    *hhh.FORMATS,
    *taskmaster.FORMATS,
    *helpsteer.FORMATS,
    *ultrafeedback.FORMATS,
    *nectar.FORMATS,
    *stack_exchange.FORMATS,
    *shp.FORMATS,
    *beavertails.FORMATS,
    *webgpt.FORMATS,
    *arena.FORMATS,
    *summarize.FORMATS,
    *red_team.FORMATS,
    *alpacafarm.FORMATS,
    *prism.FORMATS,
    *argilla.FORMATS,
    *labelstudio.FORMATS,
    *prodigy.FORMATS,
    *openai.FORMATS,
    *sharegpt.FORMATS,
    *verl.FORMATS,
    *dolly.FORMATS,
    *orca.FORMATS,
    *alpaca.FORMATS,
    *doccano.FORMATS,
    *plain.FORMATS,
)


def recognise(row: Row) -> Format:
    """The format that knows the row; PLAIN, the schema itself, when none does."""
    return next((known for known in FORMATS if known.knows(row)), PLAIN)


def nearest(columns: Iterable[str], *, most: int = 3) -> list[Format]:
    """The formats whose columns are likest to these, the likest first; none of them when nothing is alike."""
    have = sorted(columns)
    shares = []
    for known in FORMATS:
        alike = sum(bool(difflib.get_close_matches(key, have, n=1, cutoff=0.75)) for key in known.keys)
        shares.append((alike / max(len(known.keys), 1), known))
    best = sorted((pair for pair in shares if pair[0] >= 0.5), key=lambda pair: -pair[0])
    return [known for _, known in best[:most]]


def gather_ratings(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Rated rows of the same prompt and annotator as one, in the order and with the line of the first."""
    groups: dict[str, tuple[int, dict[str, Any]]] = {}
    for line, row in rows:
        key = json.dumps([row.get("prompt"), sorted(row["ratings"]), row.get("annotator")])
        if key not in groups:
            copied = {name: list(values) for name, values in row["ratings"].items()}
            groups[key] = line, {**row, "completions": list(row["completions"]), "ratings": copied}
            continue
        group = groups[key][1]
        group["completions"] += row["completions"]
        for name, values in row["ratings"].items():
            group["ratings"][name] += values
    yield from groups.values()
