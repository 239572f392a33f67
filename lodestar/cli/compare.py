"""``lodestar compare``: runs what is missing of a comparison, or takes finished runs, and writes the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lodestar.errors import ConfigError, FailedPrecondition
from lodestar.recipe.folder import CONFIG

SEEDS = 5
OUTPUT = Path("comparison")
"""Of finished runs, where nothing else is said."""


def compare(
    what: Sequence[str], *, recipes: str | None, seeds: int | None, output: Path | None, fresh: bool, plain: bool
) -> None:
    """A configuration's methods, or finished runs.

    Raises:
        ConfigError, FailedPrecondition: see lodestar.compare; options of the one form with the other.
    """
    first = Path(what[0])
    if first.is_dir():
        said = [
            name
            for name, value in (("--recipes", recipes), ("--seeds", seeds), ("--fresh", fresh or None))
            if value is not None
        ]
        if said:
            raise ConfigError(said[0], f"goes with a configuration file, and {first} is a run's folder")
        _finished([Path(one) for one in what], output or OUTPUT)
        return
    names = [name.strip() for name in recipes.split(",")] if recipes is not None else []
    _conducted(first, names, SEEDS if seeds is None else seeds, what[1:], output, fresh=fresh, plain=plain)


def _finished(roots: Sequence[Path], output: Path) -> None:
    for root in roots:
        if not (root / CONFIG).is_file():
            raise FailedPrecondition(f"{root} is not a run's folder: it has no {CONFIG}")
    from lodestar.compare.runs import read_outcomes
    from lodestar.compare.write import write_comparison

    found = write_comparison(output, output.resolve().name, read_outcomes(roots))
    _tell(found, output)


def _conducted(
    path: Path,
    names: Sequence[str],
    seeds: int,
    overrides: Sequence[str],
    output: Path | None,
    *,
    fresh: bool,
    plain: bool,
) -> None:
    from lodestar.compare.conduct import conduct
    from lodestar.compare.methods import comparison
    from lodestar.local.signals import Interrupted, interruptible
    from lodestar.local.view import view_for

    asked = comparison(path, names, seeds, overrides)
    console = Console(soft_wrap=True, highlight=False)
    try:
        with interruptible():
            went = conduct(asked, view_for(plain), lambda line: console.print(f"[bold]{escape(line)}[/]"), fresh=fresh)
    except Interrupted as signal:
        Console(stderr=True).print("stopped; the same command again goes on", highlight=False)
        raise typer.Exit(signal.exit_code) from None
    if done := [*went.kept, *went.ran]:
        from lodestar.compare.runs import read_outcome
        from lodestar.compare.write import write_comparison

        order = [entry for entry in asked.entries if entry in done]
        outcomes = [read_outcome(entry.root, entry.method) for entry in order]
        _tell(write_comparison(output or asked.root, asked.name, outcomes), output or asked.root)
    if went.failed:
        for run, error in went.failed.items():
            Console(stderr=True).print(f"[red]{escape(run)}[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        failed, runs = len(went.failed), len(asked.entries)
        raise FailedPrecondition(f"{failed} of {runs} runs did not end; the same command again runs what is missing")


def _tell(found: dict[str, Any], output: Path) -> None:
    """The table, and where the files are."""
    from lodestar.compare.write import COLUMNS, cells, sentences

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(COLUMNS):
        table.add_column(header, justify="right" if number else "left")
    for row in cells(found):
        table.add_row(*map(escape, row))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for sentence in sentences(found):
        console.print(f"[dim]{escape(sentence)}[/]")
    console.print(f"page: {output / 'compare.html'}")
