"""Methods side by side: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodestar.cli.commands.arguments import Plain


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG [KEY=VALUE]… | RUN…",
            help="A YAML file whose options every method gets, and options over it; or folders of finished runs.",
            show_default=False,
        ),
    ],
    recipes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Recipes, or methods of the file's section compare; unset: all of that section."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per method, from the file's seed on; 5 if unset.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for compare.json, .md and .html.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what the comparison's runs hold first.")] = False,
    plain: Plain = False,
) -> None:
    """Recipes × seeds on equal data, feedback and decoding, as one table; what is done already is not done again."""
    from lodestar.cli import compare as command

    command.compare(what, recipes=recipes, seeds=seeds, output=output, fresh=fresh, plain=plain)
