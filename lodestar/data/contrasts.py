"""Comparisons that need no annotator: a demonstration against what it is not, to pretrain a reward model on.

Preference-model pretraining (Askell et al. 2021, arXiv:2112.00861) on pairs made from demonstrations alone. A
demonstration is preferred to

- the demonstration for another prompt, that of the likest prompt drawn;
- itself with one stretch of words as a like demonstration has it: "the fox is red" against "the fox is brown".

Some of these are as good as the original, most are not; a model that tells them apart has learned to read a reply
against its prompt, which a few thousand comparisons cannot teach. What people like is left to them. A language model of
the demonstrations may judge the pairs instead (lodestar/train/likelihood.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from lodestar.data.feedback import read_demonstration_file
from lodestar.data.files import BadRows, write_jsonl
from lodestar.data.hh import Dialogues
from lodestar.errors import DataError, InvalidArgument
from lodestar.records import Choice, Demonstration, Feedback

DRAWN = 64
"""Demonstrations among which like ones are looked for."""
EDITS = 3
"""Edited copies of a demonstration at most."""
_PIECE = re.compile(r"\s*\S+")


def contrasts(demonstrations: Sequence[Demonstration], rows: int, *, seed: int) -> list[Feedback]:
    """``rows`` groups of a demonstration and 1 … 4 rivals, over the demonstrations in their order, again and again.

    Raises:
        InvalidArgument: fewer than two demonstrations, or all of them the same: nothing to hold against each other.
    """
    if len({(row.prompt, row.completion) for row in demonstrations}) < 2:
        raise InvalidArgument("demonstrations", "two different ones at least are needed")
    rng = random.Random(f"{seed}/contrasts")
    asked = [frozenset(row.prompt.split()) for row in demonstrations]
    said = [frozenset(row.completion.split()) for row in demonstrations]
    found: list[Feedback] = []
    number = 0
    while len(found) < rows:
        here = number % len(demonstrations)
        own = demonstrations[here]
        drawn = rng.sample(range(len(demonstrations)), min(DRAWN, len(demonstrations)))
        elsewhere = [i for i in drawn if demonstrations[i].prompt != own.prompt]
        otherwise = [i for i in drawn if demonstrations[i].completion != own.completion]
        elsewhere.sort(key=lambda i: -len(asked[here] & asked[i]))
        otherwise.sort(key=lambda i: len(said[here] ^ said[i]))
        rivals = [demonstrations[i].completion for i in elsewhere[:1]]
        rivals += [edited(own.completion, demonstrations[i].completion, rng) for i in otherwise[:EDITS]]
        texts = [text for text in dict.fromkeys(rivals) if text.strip() and text != own.completion]
        if texts:
            choices = tuple(Choice(0, i + 1, 1.0) for i in range(len(texts)))
            found.append(Feedback(own.prompt, (own.completion, *texts), choices, f"contrast-{number}"))
        number += 1
    return found


def edited(text: str, other: str, rng: random.Random) -> str:
    """The text with one stretch of words, of those where the two differ, as the other has it; itself where none do."""
    ours, theirs = _PIECE.findall(text), _PIECE.findall(other)
    words, others = ([piece.strip() for piece in pieces] for pieces in (ours, theirs))
    differences = [
        spans for kind, *spans in SequenceMatcher(None, words, others, autojunk=False).get_opcodes() if kind != "equal"
    ]
    if not differences:
        return text
    start, end, from_, to = rng.choice(differences)
    taken = "".join(theirs[from_:to])
    if start and taken and not taken[0].isspace():
        taken = f" {taken}"
    return "".join(ours[:start]) + taken + "".join(ours[end:])


def write_contrasts(
    path: Path,
    output: Path,
    *,
    rows: int | None,
    seed: int,
    strict: bool = False,
    judged: Callable[[list[Feedback]], list[Feedback]] = list,
) -> dict[str, int]:
    """Writes contrasts of a file of demonstrations in normal form; a row for each where ``rows`` is None.

    ``judged`` gives them other verdicts. Returns how many ``demonstrations``, ``rows`` and ``bad_rows`` there were.

    Raises:
        DataError: the file cannot be read or has no two different demonstrations; a bad row when strict.
    """
    bad = BadRows(strict=strict)
    read = [row.record for row in read_demonstration_file(path, Dialogues(), bad)]
    try:
        made = contrasts(read, len(read) if rows is None else rows, seed=seed)
    except InvalidArgument as error:
        raise DataError(path, str(error)) from None
    write_jsonl(output, judged(made))
    return {"demonstrations": len(read), "rows": len(made), "bad_rows": len(bad.errors)}
