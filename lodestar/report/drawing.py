"""What the report's pictures are drawn with: plotly figures as plain dictionaries of data and layout.

Colours are names such as ``@accent``: the page replaces them with those of its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lodestar.report.facts import Row

Trace = dict[str, Any]
LEGEND: Row = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "@muted"}}
_DOTTED: Row = {"color": "@muted", "width": 1, "dash": "dot"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture: what plotly draws and what a reader who does not see it is told."""

    id: str
    title: str
    says: str
    """The picture in a sentence, for its caption and for screen readers."""
    data: list[Trace]
    layout: Row = field(default_factory=dict)
    height: int = 300
    latest: str = ""
    """A small multiple's last value."""
    alternative: Row = field(default_factory=dict)
    """Label → x values of the first traces, for a picture with two x axes to choose from."""
    axis: str = ""
    """Label of the axis that it is drawn on first, where there are two."""
    titles: Row = field(default_factory=dict)
    """Label → title of each axis to choose from."""


def axes(x: str = "", **more: Any) -> Row:
    """Layout shared by all pictures: hairlines, no frame, little ink."""
    axis = {
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "gridcolor": "@rule",
        "automargin": True,
        "exponentformat": "power",
    }
    layout: Row = {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "@font", "size": 12, "color": "@muted"},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@rule", "font": {"color": "@ink", "family": "@font"}},
        "showlegend": False,
        "xaxis": {**axis, "showgrid": False, "title": {"text": x, "standoff": 8}},
        "yaxis": axis,
    }
    for name, value in more.items():
        layout[name] = layout[name] | value if isinstance(layout.get(name), dict) else value
    return layout


def by_step(steps: Sequence[float], title: str = "PPO step") -> Row:
    """An x axis of steps: whole numbers at its ticks."""
    room = max(steps, default=1) - min(steps, default=0)
    return {"title": {"text": title, "standoff": 8}, "tickformat": ",d", "tick0": 0, "dtick": whole_step(room)}


def whole_step(room: float, ticks: int = 5) -> int:
    """A round whole number that divides ``room`` into about so many parts."""
    least = max(1.0, room / ticks)
    size = 10 ** math.floor(math.log10(least))
    return int(next(size * factor for factor in (1, 2, 5, 10) if size * factor >= least))


def proportions(labels: list[str], rates: list[Row], colours: list[str]) -> Trace:
    """Dots with their intervals, one per label."""
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [rate["value"] for rate in rates],
        "y": labels,
        "text": [f"{rate['value']:.1%}" for rate in rates],
        "textposition": "top center",
        "textfont": {"color": "@ink"},
        "marker": {"size": 11, "color": colours},
        "error_x": intervals(rates, thickness=1.5, width=0),
        "customdata": [[rate["low"], rate["high"], rate["n"]] for rate in rates],
        "hovertemplate": "%{x:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}) of %{customdata[2]}<extra></extra>",
    }


def marks(name: str, x: list[float], y: list[float], labels: list[str], symbol: str = "diamond") -> Trace:
    """Single points with their labels, over a curve."""
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": x,
        "y": y,
        "text": labels,
        "textposition": "bottom center" if symbol == "star" else "top center",
        "textfont": {"color": "@ink", "size": 11},
        "marker": {"size": 14 if symbol == "star" else 9, "symbol": symbol, "color": "@second"},
        "hovertemplate": f"{name} %{{text}}: %{{y:.3g}} at %{{x:.3g}}<extra></extra>",
    }


def intervals(rates: Sequence[Row], **style: float) -> Row:
    """Error bars from ``low`` to ``high`` around each ``value``."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [rate["high"] - rate["value"] for rate in rates],
        "arrayminus": [rate["value"] - rate["low"] for rate in rates],
        "color": "@muted",
        **style,
    }


def vertical(x: float) -> Row:
    """A dotted line from bottom to top."""
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": _DOTTED}


def horizontal(y: float) -> Row:
    """A dotted line from left to right."""
    return {"type": "line", "y0": y, "y1": y, "xref": "paper", "x0": 0, "x1": 1, "line": _DOTTED}
