"""A run's ledger: ledger check."""

from __future__ import annotations

import typer

from lodestar.cli.commands.arguments import Run


def check(run: Run) -> None:
    """Prove that every ticket ended exactly once, and say how; an id that is double or missing is named."""
    from lodestar.recipe import named
    from lodestar.rollouts.ledger import check_run

    for stage, counts in check_run(named.run_folder(run).root).items():
        how = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        typer.echo(f"{stage}: {counts.total()} tickets, each ended once: {how}")
