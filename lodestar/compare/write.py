"""compare.json, compare.md and compare.html of finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lodestar.compare.figures import compared
from lodestar.compare.runs import Outcome, Row
from lodestar.files import write_atomically
from lodestar.report.compare import render_comparison

COLUMNS = ("method", "win rate", "95% interval", "seeds", "KL", "length", "labels", "tokens sampled", "seconds")


def write_comparison(folder: Path, name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Writes the three files into a folder; what compare.json holds.

    Raises:
        FailedPrecondition: see lodestar.compare.figures.compared.
    """
    found = compared(outcomes)
    write_atomically(folder / "compare.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "compare.md", markdown(found))
    write_atomically(folder / "compare.html", render_comparison(name, found, COLUMNS, cells(found), sentences(found)))
    return found


def cells(found: Row) -> list[tuple[str, ...]]:
    """The table's rows as they are read."""
    return [
        (
            row["method"],
            f"{row['win_rate']:.1%}",
            f"{row['low']:.1%}–{row['high']:.1%}",
            str(row["seeds"]),
            _or_dash(row["kl"], ".2f"),
            f"{row['length']:.1f}",
            f"{row['labels']:,}",
            _or_dash(row["tokens"], ",.0f"),
            f"{row['seconds']:,.0f}",
        )
        for row in found["rows"]
    ]


def markdown(found: Row) -> str:
    """The table for a README, with what must be known to read it."""
    rows = [COLUMNS, tuple("---" if i == 0 else "---:" for i in range(len(COLUMNS))), *cells(found)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return table + "\n" + "".join(f"{sentence}\n" for sentence in sentences(found))


def sentences(found: Row) -> list[str]:
    """What the table is of, and how its order agrees with AlpacaFarm's."""
    judge = "the hidden gold reward" if found["judge"] == "gold" else "the reward model"
    said = [
        f"Win rates against the SFT model of the same seed, judged by {judge}; intervals are Student's over seeds. "
        "Costs are of all the stages that a policy is made from, means over seeds; KL in nats per reply."
    ]
    if found["tau"] is not None:
        said.append(f"Kendall's τ to AlpacaFarm's order (Dubois et al. 2023): {found['tau']:.2f}.")
    return [*said, *found["notes"]]


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(round(value, 3) + 0.0, form).replace("-", "−")
