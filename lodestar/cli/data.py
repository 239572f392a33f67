"""``lodestar data``: look at a file of feedback, split it, or make comparisons from demonstrations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer


def check(path: Path, *, strict: bool, as_json: bool, bad_rows: int) -> None:
    """Prints the survey of a file."""
    from lodestar.data import survey

    found = survey.check(path, strict=strict)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo("\n".join(survey.lines(found, bad_rows=bad_rows)))


def split(path: Path, folder: Path, *, held_out: float, seed: int, strict: bool) -> None:
    """Writes train.jsonl and held_out.jsonl and prints the counts."""
    from lodestar.data import survey

    counts = survey.split(path, folder, held_out=held_out, seed=seed, strict=strict)
    typer.echo(
        f"{folder}: {counts['train']} rows in train.jsonl, {counts['held_out']} in held_out.jsonl, "
        f"{counts['bad_rows']} bad rows left out (bad_rows.txt)"
    )


def contrast(path: Path, output: Path, *, rows: int | None, seed: int, strict: bool) -> None:
    """Writes the contrasts and prints the counts."""
    from lodestar.data.contrasts import write_contrasts

    counts = write_contrasts(path, output, rows=rows, seed=seed, strict=strict)
    typer.echo(
        f"{output}: {counts['rows']} rows from {counts['demonstrations']} demonstrations, "
        f"{counts['bad_rows']} bad rows left out"
    )
