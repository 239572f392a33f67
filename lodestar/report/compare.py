"""The page of a comparison: methods by win rate with intervals over seeds, against KL, against cost, in duels."""

from __future__ import annotations

from collections.abc import Sequence

from lodestar.report.drawing import LEGEND, Figure, axes, intervals, marks, vertical
from lodestar.report.facts import Row
from lodestar.report.shell import assets, template


def render_comparison(
    name: str, found: Row, headers: Sequence[str], cells: Sequence[Sequence[str]], sentences: Sequence[str]
) -> str:
    """The page's HTML: style, script and pictures inside, nothing fetched.

    Args:
        found: what compare.json holds. headers, cells: its table as it is read. sentences: what stands below it.
    """
    drawn = [_win_rates(found), *_trade_offs(found), _against_kl(found), _costs(found), _duels(found)]
    pictures = [figure for figure in drawn if figure is not None]
    page = template("compare.html.j2", filters={"points": _points})
    return page.render(
        name=name,
        found=found,
        headline=_headline(found),
        headers=headers,
        cells=cells,
        sentences=sentences,
        pictures=pictures,
        **assets(pictures),
    )


def _headline(found: Row) -> str:
    """Who is first, and who cannot be told from it."""
    rows = found["rows"]
    if len(rows) == 1:
        return f"One method: {rows[0]['method']} wins {rows[0]['win_rate']:.1%} against its SFT model."
    first = rows[0]
    level = [one["against"] for one in found["differences"] if one["low"] <= 0]
    said = f"{first['method']} is first of {len(rows)} methods: it wins {first['win_rate']:.1%} against its SFT model"
    if not found["differences"]:
        return f"{said}. One seed alone does not tell whether another seed would say the same."
    return (
        f"{said}; over seeds {', '.join(level)} cannot be told from it." if level else f"{said}, ahead of all others."
    )


def _win_rates(found: Row) -> Figure:
    """Means with their intervals, and each seed as a dot."""
    rows = found["rows"][::-1]
    runs = found["runs"]
    seeds = {
        "type": "scatter",
        "mode": "markers",
        "name": "one seed",
        "x": [run["win_rate"]["value"] for run in runs],
        "y": [run["method"] for run in runs],
        "marker": {"size": 6, "color": "@tint"},
        "customdata": [run["seed"] for run in runs],
        "hovertemplate": "%{y}, seed %{customdata}: %{x:.1%}<extra></extra>",
    }
    values = [{"value": row["win_rate"], "low": row["low"], "high": row["high"]} for row in rows]
    means = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "mean over seeds, 95%",
        "x": [row["win_rate"] for row in rows],
        "y": [row["method"] for row in rows],
        "text": [f"{row['win_rate']:.1%}" for row in rows],
        "textposition": "top center",
        "textfont": {"color": "@ink"},
        "marker": {"size": 11, "color": "@accent"},
        "error_x": intervals(values, thickness=1.5, width=0),
        "customdata": [[row["low"], row["high"], row["seeds"]] for row in rows],
        "hovertemplate": "%{x:.1%} (%{customdata[0]:.1%}–%{customdata[1]:.1%}), %{customdata[2]} seeds<extra></extra>",
    }
    layout = axes(
        "share of prompts won against the SFT model of the same seed",
        xaxis={"range": [0, 1.02], "tickformat": ".0%", "dtick": 0.25, "showgrid": True},
        yaxis={
            "showgrid": False,
            "range": [-0.5, len(rows) - 0.3],
            "categoryorder": "array",
            "categoryarray": [row["method"] for row in rows],
        },
        shapes=[vertical(0.5)],
        showlegend=True,
        legend=LEGEND,
    )
    says = f"From {rows[-1]['win_rate']:.1%} ({rows[-1]['method']}) to {rows[0]['win_rate']:.1%} ({rows[0]['method']})."
    return Figure("compare-win-rates", "Win rates", says, [seeds, means], layout, height=110 + 52 * len(rows))


def _against_kl(found: Row) -> Figure | None:
    """What each nat bought, run by run."""
    names = [row["method"] for row in found["rows"] if row["kl"] is not None]
    if len(names) < 2:
        return None
    traces = []
    for number, name in enumerate(names):
        runs = [run for run in found["runs"] if run["method"] == name]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [max(0.0, run["kl"]) for run in runs],
                "y": [run["win_rate"]["value"] for run in runs],
                "marker": {
                    "size": 9,
                    "symbol": SYMBOLS[number % len(SYMBOLS)],
                    "color": COLOURS[number % len(COLOURS)],
                },
                "customdata": [run["seed"] for run in runs],
                "hovertemplate": f"{name}, seed %{{customdata}}: %{{y:.1%}} at %{{x:.2f}} nats<extra></extra>",
            }
        )
    layout = axes("KL to the SFT model, nats per reply", yaxis={"tickformat": ".0%"}, showlegend=True, legend=LEGEND)
    says = (
        "Each mark is a run. Higher is better, further left is nearer to the model that people's demonstrations made."
    )
    return Figure("compare-kl", "Win rate against KL", says, traces, layout, height=380)


def _trade_offs(found: Row) -> list[Figure]:
    """One aspect of the reward against another: a point per method, and a line through those that no other beats."""
    return [_trade_off(found, one) for one in found.get("trade_offs", ())]


def _trade_off(found: Row, pair: Row) -> Figure:
    x, y, front = pair["x"], pair["y"], pair["front"]
    rows = {row["method"]: row["aspects"] for row in found["rows"] if {x, y} <= row.get("aspects", {}).keys()}
    runs = [run for run in found["runs"] if run["method"] in rows]
    seeds = {
        "type": "scatter",
        "mode": "markers",
        "name": "one seed",
        "x": [run["aspects"][x] for run in runs],
        "y": [run["aspects"][y] for run in runs],
        "marker": {"size": 6, "color": "@tint"},
        "text": [f"{run['method']}, seed {run['seed']}" for run in runs],
        "hovertemplate": "%{text}: %{x:.2f}, %{y:.2f}<extra></extra>",
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "no other is better in both",
        "x": [rows[method][x]["value"] for method in front],
        "y": [rows[method][y]["value"] for method in front],
        "line": {"color": "@accent", "width": 1.5},
        "hoverinfo": "skip",
    }
    means = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "mean over seeds, 95%",
        "x": [of[x]["value"] for of in rows.values()],
        "y": [of[y]["value"] for of in rows.values()],
        "text": list(rows),
        "textposition": "top center",
        "textfont": {"color": "@ink"},
        "marker": {"size": 11, "color": ["@accent" if method in front else "@muted" for method in rows]},
        "error_x": intervals([of[x] for of in rows.values()], thickness=1, width=0),
        "error_y": intervals([of[y] for of in rows.values()], thickness=1, width=0),
        "hovertemplate": "%{text}: %{x:.2f}, %{y:.2f}<extra></extra>",
    }
    traces = [seeds, line, means]
    if pair["start"]:
        traces.append(marks("start model", [pair["start"][0]], [pair["start"][1]], ["start"], symbol="star"))
    layout = axes(f"{x}, mean score", yaxis={"title": {"text": f"{y}, mean score"}}, showlegend=True, legend=LEGEND)
    says = (
        f"The front, from the least {x} to the most: {', '.join(front)}."
        if len(front) > 1
        else f"{front[0]} is the best in both."
    )
    return Figure(f"compare-{_id(x)}-{_id(y)}", f"{y.capitalize()} against {x}", says, traces, layout, height=420)


def _id(aspect: str) -> str:
    """As a part of an element's id."""
    return "".join(letter if letter.isalnum() else "-" for letter in aspect)


SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "triangle-down", "cross", "hexagon")
COLOURS = ("@accent", "@second", "@muted", "@ink")


def _costs(found: Row) -> Figure:
    """Seconds of all the stages that a policy is made from."""
    rows = found["rows"][::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [row["seconds"] for row in rows],
        "y": [row["method"] for row in rows],
        "text": [f"{row['seconds']:,.0f} s" for row in rows],
        "textposition": "outside",
        "textfont": {"color": "@ink"},
        "cliponaxis": False,
        "marker": {"color": "@accent"},
        "hovertemplate": "%{y}: %{x:.1f} s<extra></extra>",
    }
    most = max(row["seconds"] for row in rows) or 1.0
    layout = axes(xaxis={"visible": False, "range": [0, 1.2 * most]}, yaxis={"showgrid": False}, bargap=0.35)
    says = "Of all the stages that each policy is made from, those that methods share included; mean over seeds."
    return Figure("compare-seconds", "Seconds", says, [bars], layout, height=60 + 34 * len(rows))


def _duels(found: Row) -> Figure | None:
    """Who beats whom, on the same prompts."""
    order = [row["method"] for row in found["rows"]]
    if len(order) < 2:
        return None
    heat = {
        "type": "heatmap",
        "z": found["duels"],
        "x": order,
        "y": order,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "@second"], [0.5, "@card"], [1, "@accent"]],
        "showscale": False,
        "text": [["" if value is None else f"{value:.0%}" for value in row] for row in found["duels"]],
        "texttemplate": "%{text}",
        "textfont": {"color": "@ink"},
        "hovertemplate": "%{y} beats %{x}: %{z:.1%}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
    }
    layout = axes(yaxis={"showgrid": False, "autorange": "reversed"}, xaxis={"showgrid": False})
    says = "How often the row's reply is judged better than the column's to the same prompt, mean over seeds."
    return Figure("compare-duels", "Head to head", says, [heat], layout, height=110 + 42 * len(order))


def _points(value: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "−")
