"""``lodestar data``: look at a file of feedback, split it, or make comparisons from demonstrations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from lodestar.records import Feedback

if TYPE_CHECKING:
    from lodestar.data.columns import Reading


def reading(columns: list[str] | None, ignore: list[str] | None) -> Reading:
    """How to read a file, from OURS=THEIRS pairs and names of columns to leave out."""
    from lodestar.data.columns import Reading

    pairs = [pair.partition("=") for pair in columns or []]
    if wrong := next((pair for pair in pairs if not all(pair)), None):
        raise typer.BadParameter(f"--column {''.join(wrong)}: write OURS=THEIRS, such as prompt=question")
    return Reading(columns={ours: theirs for ours, _, theirs in pairs}, ignore=frozenset(ignore or ()))


def check(path: Path, *, strict: bool, as_json: bool, bad_rows: int, reading: Reading) -> None:
    """Prints the survey of a file."""
    from lodestar.data import survey

    found = survey.check(path, strict=strict, reading=reading)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo("\n".join(survey.lines(found, bad_rows=bad_rows)))


def split(path: Path, folder: Path, *, held_out: float, seed: int, strict: bool, reading: Reading) -> None:
    """Writes train.jsonl and held_out.jsonl and prints the counts."""
    from lodestar.data import survey

    counts = survey.split(path, folder, held_out=held_out, seed=seed, strict=strict, reading=reading)
    typer.echo(
        f"{folder}: {counts['train']} rows in train.jsonl, {counts['held_out']} in held_out.jsonl, "
        f"{counts['bad_rows']} bad rows left out (bad_rows.txt)"
    )


def contrast(
    path: Path,
    output: Path,
    *,
    rows: int | None,
    seed: int,
    strict: bool,
    by: str | None,
    temperature: float | None,
) -> None:
    """Writes the contrasts, judged by the language model ``by`` if there is one, and prints the counts."""
    from lodestar.data.contrasts import write_contrasts

    if by is None and temperature is not None:
        raise typer.BadParameter("--temperature is of the labels that --by gives; name a model there too")
    judged = list if by is None else _judge(by, 1.0 if temperature is None else temperature)
    counts = write_contrasts(path, output, rows=rows, seed=seed, strict=strict, judged=judged)
    typer.echo(
        f"{output}: {counts['rows']} rows from {counts['demonstrations']} demonstrations, "
        f"{counts['bad_rows']} bad rows left out"
    )


def _judge(path: str, temperature: float) -> Callable[[list[Feedback]], list[Feedback]]:
    """Verdicts of a language model, with a progress bar."""
    from rich.progress import track

    from lodestar.model.fused import fuse
    from lodestar.model.loading import load_causal_lm, load_tokenizer, resolve_device
    from lodestar.train.likelihood import judged_by_likelihood

    model, tokenizer = load_causal_lm(path, device=str(resolve_device("auto"))), load_tokenizer(path)
    fuse(model)

    def judged(rows: list[Feedback]) -> list[Feedback]:
        parts = [rows[start : start + 200] for start in range(0, len(rows), 200)]
        shown = track(parts, "judging", console=Console(stderr=True))
        return [row for part in shown for row in judged_by_likelihood(model, tokenizer, part, temperature=temperature)]

    return judged
