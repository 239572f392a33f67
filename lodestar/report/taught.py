"""What people's answers taught: how often their reward model is right about what it has not seen, and what changed in
the policy's replies. taught.html is a page that needs nothing but a browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lodestar.evaluation import bounded_mean
from lodestar.files import write_atomically
from lodestar.report.shell import assets, template

WORDS = 6
"""Words shown, of each kind."""
SAMPLES = 24
"""Replies shown."""


def changed_words(before: Sequence[str], after: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Words that are in more replies, and in fewer, than before: those whose share changed most, where its 95% interval
    over prompts (paired) leaves 0 out. Of many words some leave it out by chance; the interval is of each alone."""
    sides = [[set(text.split()) for text in texts] for texts in (before, after)]
    counts = Counter(word for side in sides for words in side for word in words)
    rows: list[dict[str, Any]] = []
    for word in sorted(counts):
        then, now = ([float(word in words) for words in side] for side in sides)
        gaps = [new - old for old, new in zip(then, now, strict=True)]
        share = bounded_mean(gaps, range(len(gaps)), low=-1.0, high=1.0)
        if share.low > 0 or share.high < 0:
            told = {"before": sum(then) / len(then), "after": sum(now) / len(now)}
            rows.append({"word": word, **told, "change": asdict(share)})
    rows.sort(key=lambda row: row["change"]["value"])
    return {
        "fewer": [row for row in rows if row["change"]["high"] < 0][:WORDS],
        "more": [row for row in reversed(rows) if row["change"]["low"] > 0][:WORDS],
    }


def sentence(accuracy: Mapping[str, Any]) -> str:
    """``The reward model is right about 14 of 18 answers that it had not seen, …``."""
    n = accuracy["n"]
    if not n:
        return "Every answer was a tie: there is nothing that a reward model could be right about."
    right = round(accuracy["value"] * n)
    share = f"{accuracy['value']:.0%}, 95% interval {accuracy['low']:.0%} to {accuracy['high']:.0%}"
    return f"The reward model is right about {right} of {n} answers that it had not seen ({share}; guessing is 50%)."


def write_taught(path: Path, found: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> None:
    """The page of a taught.json and its samples."""
    page = template("taught.html.j2").render(
        found=found, says=sentence(found["accuracy"]), samples=list(samples)[:SAMPLES], **assets([])
    )
    write_atomically(path, page)
