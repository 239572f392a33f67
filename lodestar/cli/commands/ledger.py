"""A run's ledger: ledger check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]) -> None:
    """Prove that every ticket ended exactly once, and say how; an id that is double or missing is named."""
    from lodestar.layout import RunFolder
    from lodestar.ledger import check_run

    counts = check_run(RunFolder(run))
    how = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("trained", "failed", "superseded"))
    typer.echo(f"{run}: {counts.total()} tickets, each ended once: {how}")
