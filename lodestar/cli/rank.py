"""``lodestar rank FILE``: who is better, by how much, and how sure that is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from lodestar.preference.ranking import (
    Fit,
    Separation,
    Standing,
    Table,
    Ties,
    condorcet_winner,
    find_separation,
    fit,
    read_table,
    standings,
)


def rank(path: Path, *, ties: Ties, penalty: float, as_json: bool) -> None:
    """Prints the table, or the same figures as JSON. Without finite strengths it says why and prints the votes."""
    table = read_table(path)
    votes_KK = table.votes_KK()
    separation = None if penalty else find_separation(table, davidson=ties == "davidson")
    fitted = None if separation else fit(table, ties=ties, penalty=penalty)
    figures = _figures(table, fitted, separation, standings(votes_KK), condorcet_winner(votes_KK))
    figures |= {"file": str(path), "tie_model": ties, "penalty": penalty}
    if as_json:
        print(json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(figures)


def _figures(
    table: Table, fitted: Fit | None, separation: Separation | None, votes: list[Standing], condorcet: int | None
) -> dict[str, Any]:
    rows = []
    for item, (name, standing, (wins, tied, losses)) in enumerate(zip(table.items, votes, table.record(), strict=True)):
        row: dict[str, Any] = {"item": name, "strength": None, "error": None, "low": None, "high": None}
        if fitted:
            low, high = fitted.interval(item)
            row |= {
                "strength": float(fitted.strength_K[item]),
                "error": float(fitted.error_K[item]),
                "low": low,
                "high": high,
            }
        row |= {"wins": wins, "ties": tied, "losses": losses, "opponents": standing.opponents}
        rows.append(row | {"copeland": standing.copeland, "borda": standing.borda})
    rows.sort(key=lambda row: (row["strength"] or 0.0, row["borda"]), reverse=True)
    return {
        "comparisons": table.comparisons,
        "ties": table.ties,
        "items": rows,
        "errors": fitted.errors if fitted else None,
        "log_ties": fitted.log_ties if fitted and fitted.log_ties not in (None, -math.inf) else None,
        "log_likelihood": fitted.log_likelihood if fitted else None,
        "separation": separation and {"groups": separation.groups, "message": separation.message},
        "winners": {
            "condorcet": table.items[condorcet] if condorcet is not None else None,
            "copeland": _best(rows, "copeland"),
            "borda": _best(rows, "borda"),
        },
    }


def _best(rows: list[dict[str, Any]], rule: str) -> list[str]:
    most = max(row[rule] for row in rows)
    return [row["item"] for row in rows if math.isclose(row[rule], most)]


def _print(figures: dict[str, Any]) -> None:
    console = Console()
    grid = Grid(title=f"{figures['comparisons']:g} comparisons, {figures['ties']:g} ties", title_justify="left")
    for column in ("", "item", "strength", "95% interval", "won", "tied", "lost", "Copeland", "Borda"):
        grid.add_column(
            column, justify="left" if column == "item" else "right", overflow="fold", no_wrap=column == "95% interval"
        )
    for place, row in enumerate(figures["items"], start=1):
        known = row["strength"] is not None
        grid.add_row(
            str(place),
            Text(row["item"]),
            f"{row['strength']:+.3f}" if known else "–",
            f"{row['low']:+.2f} … {row['high']:+.2f}" if known else "–",
            *(f"{row[name]:g}" for name in ("wins", "ties", "losses", "copeland")),
            f"{row['borda']:.3f}",
        )
    console.print(grid)
    winners = figures["winners"]
    none = "none: no item wins a majority against every other"
    console.print(f"Condorcet winner: {winners['condorcet'] or none}", markup=False, soft_wrap=True)
    for rule in ("copeland", "borda"):
        console.print(f"{rule.capitalize()}'s winner: {', '.join(winners[rule])}", markup=False, soft_wrap=True)
    if figures["separation"]:
        said = Text(f"no strengths: {figures['separation']['message']}", "yellow")
        console.print(said, soft_wrap=True)
    else:
        console.print(
            "Strengths sum to 0; the odds of two items are e to their difference. "
            f"Errors: {figures['errors']}; ties: {figures['tie_model']}.",
            style="dim",
            soft_wrap=True,
        )
