"""Llama 2's picture of rounds: how the distribution of reward-model scores moves (Touvron et al. 2023, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import numpy.typing as npt

from lodestar.report.drawing import Figure, Trace, axes
from lodestar.report.facts import Row

Floats = npt.NDArray[np.float64]
GRID = 160
"""Points of a density."""


def shift_picture(shift: Sequence[Row]) -> Figure | None:
    """One density of scores per round, the latest filled."""
    if len(shift) < 2:
        return None
    every = [score for row in shift for score in row["scores"]]
    room = 0.1 * (max(every) - min(every)) or 1.0
    x = np.linspace(min(every) - room, max(every) + room, GRID)
    traces: list[Trace] = []
    for position, row in enumerate(shift):
        name = _name(row["round"])
        last = position == len(shift) - 1
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name}, mean {_mean(row)}",
                "x": [round(float(value), 4) for value in x],
                "y": [round(float(value), 5) for value in density(row["scores"], x)],
                "line": {"color": "@accent" if last else "@muted" if not position else "@second", "width": 2.2},
                "opacity": 1.0 if last or not position else 0.35 + 0.5 * position / len(shift),
                "fill": "tozeroy" if last else "none",
                "fillcolor": "@accent-soft",
                "hovertemplate": f"{name}: %{{x:.2f}}<extra></extra>",
            }
        )
    says = (
        f"From SFT to {_name(shift[-1]['round'])} the mean went from 0 to {_mean(shift[-1])}. Each policy "
        "is scored by the reward model of its evaluation; 0 is the SFT model's mean by the same one, since two reward "
        "models share no zero. They need not share a unit either: win rates say what is better."
    )
    legend = {"orientation": "v", "x": 1.01, "y": 1, "font": {"color": "@muted"}}
    layout = axes(
        "score, above the SFT model's mean",
        yaxis={"showticklabels": False, "showgrid": False, "rangemode": "tozero"},
        showlegend=True,
        legend=legend,
    )
    return Figure("score-shift", "Scores from round to round", says, traces, layout, height=320)


def density(scores: Sequence[float], x: Floats) -> Floats:
    """Gaussian kernels of Silverman's (1986, equation 3.31) width."""
    values = np.asarray(scores, dtype=np.float64)
    quartiles = np.subtract(*np.percentile(values, (75, 25))) / 1.34
    spread = min(filter(None, (float(values.std()), float(quartiles))), default=0.0) or 1e-3
    width = 0.9 * spread * len(values) ** -0.2
    kernels = np.exp(-0.5 * ((x[:, None] - values[None, :]) / width) ** 2)
    return np.asarray(kernels.sum(axis=1) / (len(values) * width * math.sqrt(2 * math.pi)))


def _mean(row: Row) -> str:
    mean = round(fmean(row["scores"]), 2)
    return f"{mean or 0.0:.2f}".replace("-", "−")


def _name(place: int) -> str:
    return f"round {place}" if place else "SFT"
