"""What every benchmark shares: alternating runs, medians, memory over processes, a table and a JSON file.

Ours and the peer's work run in turn, A B A B …, so that a machine that slows down slows both; the ratio is the median
of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from lodestar.evaluation import WinRate
from lodestar.recipe.folder import RunFolder

RESULTS = Path(__file__).parent / "results"
LEARNING_RATE = 1e-7
"""Of PPO benchmarks, on both sides: all the work of an update, and responses that stay as long as they were. At 1e-5
they shrink by half within eight iterations, on neither side at the same pace."""


def parser(doc: str | None, *, runs: int = 5) -> argparse.ArgumentParser:
    """Options every benchmark has."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=runs, help=f"pairs of runs (default {runs})")
    options.add_argument("--small", action="store_true", help="sizes that take seconds; proves that the script runs")
    options.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/NAME.json; none with --small)")
    return options


def alternate(runs: int, **work: Callable[[], float]) -> dict[str, list[float]]:
    """Runs each piece of work ``runs`` times in turn; each returns its own figure (seconds, or a rate)."""
    figures: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(runs):
        for name, measure in work.items():
            figures[name].append(measure())
    return figures


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median of the pairs' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def mean_with_interval(values: Sequence[float]) -> WinRate:
    """Mean of a figure of several seeds, with Student's 95% interval; infinite for one seed."""
    n, mean = len(values), statistics.fmean(values)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5 if n > 1 else float("inf")
    return WinRate(mean, mean - half, mean + half, n)


def memory_bytes(*pids: int) -> int:
    """Memory of processes and their children: what each alone holds (USS), summed."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            process = psutil.Process(pid)
            total += sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True)))
    return total


def iterations_of(folder: RunFolder) -> tuple[list[dict[str, Any]], list[float]]:
    """A PPO run's metrics, a row per iteration, and the seconds of every iteration after the first."""
    rows = folder.rows(folder.last("ppo"), "metrics.jsonl")
    return rows, [later["time"] - earlier["time"] for earlier, later in itertools.pairwise(rows)]


def versions() -> dict[str, str]:
    """Where and with what a figure was taken."""
    packages = ("torch", "transformers", "triton", "grpcio", "redis")
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": str(psutil.cpu_count()),
        **{name: metadata.version(name) for name in packages},
    }


def report(
    name: str, rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace, notes: str = "", **further: Any
) -> None:
    """Prints the rows as a table and writes them with the versions, and what further there is, as JSON."""
    table = Table(title=name)
    for column in rows[0]:
        table.add_column(column, justify="right" if isinstance(rows[0][column], int | float) else "left")
    for row in rows:
        table.add_row(*(f"{v:,.3g}" if isinstance(v, float) else f"{v}" for v in row.values()))
    console = Console()
    console.print(table)
    if notes:
        console.print(notes)
    path: Path | None = arguments.out or (None if arguments.small else RESULTS / f"{name}.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": rows, "notes": notes, "versions": versions(), **further}, indent=1) + "\n")
        console.print(f"written to {path}")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
