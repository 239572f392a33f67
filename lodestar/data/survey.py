"""``lodestar data check`` and ``lodestar data split``: what a file of feedback holds, and two files without a prompt
in common."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lodestar.data.columns import Reading
from lodestar.data.feedback import Found, read_feedback_file, read_file
from lodestar.data.files import BadRows, write_jsonl
from lodestar.data.hh import Dialogues
from lodestar.data.schema import Example, feedback_row
from lodestar.errors import DataError, InvalidArgument
from lodestar.files import write_atomically
from lodestar.preference.agreement import agreement
from lodestar.preference.pairs import choices
from lodestar.records import Feedback, Ranking, Ratings


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts of a file; lengths are in words as (least, quarter, median, three quarters, most)."""

    file: str
    format: str
    """Its name in lodestar.data.formats."""
    address: str
    """Where that is documented."""
    rows: int
    kinds: dict[str, int]
    """choices, ranking, ratings, liked or not, demonstrations, prompts → rows."""
    prompts: int
    completions: dict[int, int]
    """K → rows."""
    comparisons: int
    ties: int
    duplicates: int
    """Rows that say of the same completions what an earlier row of the same annotator said."""
    annotators: dict[str, int]
    subsets: dict[str, int]
    flags: dict[str, int]
    prompt_words: tuple[int, ...]
    completion_words: tuple[int, ...]
    alpha: dict[str, float]
    """Krippendorff's, where several judged the same; see lodestar.preference.agreement."""
    bad_rows: tuple[str, ...]
    """``file:line: what is wrong``."""
    unused: dict[str, int]
    """Column that nothing reads → rows that have it."""
    leaves: str
    """What else of the format is not used."""


def check(path: Path, *, strict: bool = False, reading: Reading | None = None) -> Survey:
    """Reads a file of feedback, demonstrations or prompts in any known form and counts.

    Raises:
        DataError: unreadable, or no usable row; when strict, the first bad row or the columns that nothing reads.
    """
    bad = BadRows(strict=strict)
    return survey(path, read_file(path, Dialogues(), bad, replace(reading or Reading(), strict=strict)), bad)


def survey(path: Path, found: Found, bad: BadRows) -> Survey:
    """Counts what came from a file."""
    feedback = [row.record for row in found.feedback]
    shown = [row.record for row in found.demonstrations]
    prompts = [record.prompt for record in feedback] + [record.prompt for record in shown]
    prompts += [row.record for row in found.prompts]
    replies = [text for record in feedback for text in record.completions] + [record.completion for record in shown]
    labels = [choice.label for record in feedback for choice in choices(record)]
    kinds = Counter(_kind(record) for record in feedback)
    kinds |= Counter({"demonstrations": len(shown), "prompts": len(found.prompts)})
    same = Counter(json.dumps([record.annotator, feedback_row(record) | {"id": ""}]) for record in feedback)
    return Survey(
        file=str(path),
        format=found.format.name,
        address=found.format.address,
        rows=found.rows,
        kinds=dict(+kinds),
        prompts=len(set(prompts)),
        completions=dict(sorted(Counter(len(record.completions) for record in feedback).items())),
        comparisons=len(labels),
        ties=sum(label == 0.5 for label in labels),
        duplicates=sum(count - 1 for count in same.values()),
        annotators=dict(Counter(record.annotator for record in feedback if record.annotator).most_common()),
        subsets=dict(Counter(record.subset for record in feedback if record.subset).most_common()),
        flags=dict(Counter(flag for record in feedback for flag in record.flags).most_common()),
        prompt_words=_quartiles([len(text.split()) for text in prompts]),
        completion_words=_quartiles([len(text.split()) for text in replies]),
        alpha=agreement(feedback),
        bad_rows=tuple(map(str, bad.errors)),
        unused=bad.unused.of(path),
        leaves=found.format.leaves,
    )


def split(
    path: Path, folder: Path, *, held_out: float, seed: int, strict: bool = False, reading: Reading | None = None
) -> dict[str, int]:
    """Writes ``folder``/train.jsonl and held_out.jsonl in normal form: no prompt, and no dialogue that began with the
    same question, is in both; bad_rows.txt and counts.json beside them. Returns the counts.

    Raises:
        DataError: as check; also when one side would be empty.
        InvalidArgument: a share outside 0 … 1.
    """
    if not 0 < held_out < 1:
        raise InvalidArgument("held_out", f"must be between 0 and 1, got {held_out}")
    bad = BadRows(strict=strict)
    rows = read_feedback_file(path, Dialogues(), bad, replace(reading or Reading(), strict=strict))
    kept, apart = split_rows(rows, held_out=held_out, seed=seed)
    if not kept or not apart:
        raise DataError(path, f"has {len({row.family for row in rows})} prompts: too few to hold {held_out:.0%} out")
    counts = {"train": len(kept), "held_out": len(apart), "bad_rows": len(bad.errors)}
    write_jsonl(folder / "train.jsonl", kept)
    write_jsonl(folder / "held_out.jsonl", apart)
    write_atomically(folder / "bad_rows.txt", "".join(f"{error}\n" for error in bad.errors))
    write_atomically(folder / "counts.json", json.dumps(counts | {"source": str(path), "seed": seed}, indent=2) + "\n")
    return counts


def split_rows(
    rows: Sequence[Example[Feedback]], *, held_out: float, seed: int
) -> tuple[list[Feedback], list[Feedback]]:
    """Whole families at random until ``held_out`` of them are apart: (the rest, those apart), in the file's order."""
    families = sorted({row.family for row in rows})
    random.Random(f"{seed}/split").shuffle(families)
    apart = set(families[: round(held_out * len(families))])
    return (
        [row.record for row in rows if row.family not in apart],
        [row.record for row in rows if row.family in apart],
    )


def lines(survey: Survey, *, bad_rows: int = 20) -> list[str]:
    """The survey for a terminal."""
    told = asdict(survey)
    text = [f"{survey.file}: {survey.rows} rows ({_counts(told['kinds'])}), {survey.prompts} prompts"]
    text.append(f"format: {survey.format} ({survey.address})")
    if survey.unused:
        text.append(f"columns that nothing reads: {_counts(survey.unused)}")
    if survey.leaves:
        text.append(f"left out: {survey.leaves}")
    if survey.completions:
        text.append("completions per row: " + ", ".join(f"{k}: {n}" for k, n in survey.completions.items()))
    share = f" ({survey.ties / survey.comparisons:.1%})" if survey.comparisons else ""
    text.append(f"comparisons: {survey.comparisons}, ties {survey.ties}{share}; duplicate rows: {survey.duplicates}")
    names = ("least", "quarter", "median", "three quarters", "most")
    measured = (("prompt", survey.prompt_words), ("completion", survey.completion_words))
    for what, figures in (pair for pair in measured if pair[1]):
        text.append(f"words per {what}: " + ", ".join(f"{n} {v}" for n, v in zip(names, figures, strict=True)))
    for what in ("annotators", "subsets", "flags"):
        if told[what]:
            text.append(f"{what}: {_counts(told[what])}")
    if survey.alpha:
        text.append("Krippendorff's alpha: " + ", ".join(f"{name} {value:.3f}" for name, value in survey.alpha.items()))
    else:
        text.append("Krippendorff's alpha: nothing was judged by two annotators")
    text.append(f"bad rows: {len(survey.bad_rows)}")
    text += [f"  {row}" for row in survey.bad_rows[:bad_rows]]
    if len(survey.bad_rows) > bad_rows:
        text.append(f"  … and {len(survey.bad_rows) - bad_rows} more; --bad-rows shows more of them")
    return text


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:12]]
    return ", ".join(shown) + (f", and {len(counts) - 12} more" if len(counts) > 12 else "")


def _quartiles(values: list[int]) -> tuple[int, ...]:
    if not values:
        return ()
    ordered = sorted(values)
    return tuple(ordered[round(share * (len(ordered) - 1))] for share in (0, 0.25, 0.5, 0.75, 1))


def _kind(record: Feedback) -> str:
    match record.verdict:
        case Ranking():
            return "ranking"
        case Ratings() if len(record.completions) == 1 and "approval" in record.verdict.aspects:
            return "liked or not"
        case Ratings():
            return "ratings"
        case _:
            return "choices"
