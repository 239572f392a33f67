"""A run's ledger: ledger check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]) -> None:
    """Prove that every ticket ended exactly once, and say how; an id that is double or missing is named."""
    from lodestar.rollouts.ledger import check_run

    for stage, counts in check_run(run).items():
        how = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        typer.echo(f"{stage}: {counts.total()} tickets, each ended once: {how}")
