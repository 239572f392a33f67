"""A reward model's pictures: what its card says of accuracy, calibration, scores and length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lodestar.report.drawing import Figure, axes, intervals, proportions, vertical
from lodestar.report.facts import Row


def accuracies(card: Row) -> Figure:
    """The reward model's held-out accuracy beside what it must beat."""
    named = [("reward model", card["accuracy"], "@accent")]
    named += [(name.replace("_", " "), rate, "@second") for name, rate in card.get("baselines", {}).items()]
    labels, rates, colours = (list(column) for column in zip(*reversed(named), strict=True))
    dots = proportions(labels, rates, colours)
    layout = axes(
        "accuracy on held-out pairs",
        xaxis={"range": [0.25, 1.02], "tickformat": ".0%", "showgrid": True, "dtick": 0.25},
        yaxis={"showgrid": False, "range": [-0.5, len(named) - 0.3]},
        shapes=[vertical(0.5)],
    )
    rate = card["accuracy"]
    says = f"{rate['value']:.1%} of {rate['n']} pairs without ties, 95% interval {rate['low']:.1%}–{rate['high']:.1%}."
    training = card.get("training", {})
    for cut in (one.get("cut_short") for one in (training, *training.get("other_members", ()))):
        if cut:
            says += f" max_seconds cut its training short at {cut['done']} of {cut['total']} steps."
    return Figure("rm-accuracy", "Accuracy", says, [dots], layout, height=90 + 56 * len(named))


def reliability(card: Row) -> Figure:
    """Predicted against observed preference."""
    bins = card["calibration"]["bins"]
    most = max((one["n"] for one in bins), default=1)
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0.5, 1],
        "y": [0.5, 1],
        "line": {"color": "@muted", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    dots = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [one["predicted"] for one in bins],
        "y": [one["observed"] for one in bins],
        "line": {"color": "@accent", "width": 1.5},
        "marker": {"color": "@accent", "size": [6 + 12 * math.sqrt(one["n"] / most) for one in bins], "opacity": 0.85},
        "customdata": [one["n"] for one in bins],
        "hovertemplate": "says %{x:.0%}, is %{y:.0%} (%{customdata} pairs)<extra></extra>",
    }
    layout = axes("what the model says", xaxis={"tickformat": ".0%"}, yaxis={"tickformat": ".0%"})
    says = f"How often it is so; expected calibration error {card['calibration']['ece']:.3f}"
    says += _temperature(card["calibration"])
    traces = [diagonal, dots]
    if "scaled" in card["calibration"]:
        x, y = ([one[name] for one in card["calibration"]["scaled"]["bins"]] for name in ("predicted", "observed"))
        colour = {"color": "@second"}
        traces.append(dots | {"x": x, "y": y, "line": {**colour, "width": 1.5}, "marker": colour})
    last = card["calibration"].get("scaled", card["calibration"])
    if "ece_of_chance" in last:
        says += f"; chance alone makes it {last['ece_of_chance']:.3f}"
    return Figure("rm-reliability", "Calibration", f"{says}.", traces, layout)


def _temperature(calibration: Row) -> str:
    """The temperature that held-out pairs gave and what it did, or why none is applied."""
    if "temperature" not in calibration:
        return ""
    value, low, high = (calibration.get(name) for name in ("temperature", "temperature_low", "temperature_high"))
    if "scaled" in calibration:
        interval = f", 95% interval {low:.2f}–{high:.2f}" if "temperature_low" in calibration else ""
        return (
            f", {calibration['scaled']['ece']:.3f} with scores divided by the held-out temperature {value:.2f}"
            f"{interval} (lighter)"
        )
    if value is None:
        reason = "on held-out pairs the scores say nothing, or the opposite"
    elif value == 0:
        reason = "on held-out pairs the scores were never wrong, which fits every small one"
    elif high is None:
        reason = f"held-out pairs fit {value:.2f} best, but also every one above {low:.2f}"
    elif low == 0:
        reason = f"held-out pairs fit {value:.2f} best, but also every one below {high:.2f}"
    else:
        reason = f"held-out pairs fit {value:.2f} best, 95% interval {low:.2f}–{high:.2f}, and 1 as well"
    return f"; no temperature is applied: {reason}"


def histogram(card: Row) -> Figure:
    """Scores of held-out completions."""
    scores = card["scores"]
    edges = scores["edges"]
    bars = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in pairwise(edges)],
        "y": scores["counts"],
        "width": [0.92 * (high - low) for low, high in pairwise(edges)],
        "marker": {"color": "@accent"},
        "hovertemplate": "%{x:.3g}: %{y}<extra></extra>",
    }
    says = f"Mean {scores['mean']:.2f}, standard deviation {scores['standard_deviation']:.2f}."
    return Figure("rm-histogram", "Scores, completions per bin", says, [bars], axes("score of a held-out completion"))


def score_by_length(card: Row) -> Figure:
    """Whether the reward model likes length."""
    bins = card["score_by_length"]["bins"]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [one["tokens"] for one in bins],
        "y": [one["score"] for one in bins],
        "line": {"color": "@accent", "width": 1.8},
        "marker": {"size": 7},
        "hovertemplate": "%{x:.0f} tokens: %{y:.3g}<extra></extra>",
    }
    says = f"Correlation {card['score_by_length']['correlation']:+.2f} with the completion's tokens."
    return Figure("rm-length", "Mean score against length", says, [line], axes("tokens of the completion"))


def listed(id: str, title: str, rates: Sequence[tuple[str, Row]]) -> list[Figure]:
    """Accuracy of parts of the data, where there is more than one."""
    return [parts(id, title, rates, "accuracy of each part")] if len(rates) > 1 else []


def parts(id: str, title: str, rates: Sequence[tuple[str, Row]], what: str) -> Figure:
    """Proportions with their 95% intervals, one line each."""
    ordered = list(reversed(rates))
    x = [rate["value"] for _, rate in ordered]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": [f"{label.replace('_', ' ')} ({rate['n']})" for label, rate in ordered],
        "marker": {"size": 10, "color": "@accent"},
        "error_x": intervals([rate for _, rate in ordered], thickness=1.2, width=0),
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    layout = axes(
        "accuracy", xaxis={"tickformat": ".0%", "showgrid": True, "range": [0, 1.02]}, yaxis={"showgrid": False}
    )
    says = f"{what[0].upper()}{what[1:]}, with 95% intervals: {min(x):.1%} to {max(x):.1%}; pairs in brackets."
    return Figure(id, title, says, [dots], layout, height=90 + 40 * len(rates))


def learning_curve(points: Sequence[Row]) -> Figure:
    """Accuracy by rows trained on."""
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point["rows"] for point in points],
        "y": [point["value"] for point in points],
        "error_y": intervals(points, thickness=1.2),
        "line": {"color": "@accent", "width": 1.8},
        "hovertemplate": "%{x} rows: %{y:.1%}<extra></extra>",
    }
    says = f"From {points[0]['value']:.1%} with {points[0]['rows']} rows to {points[-1]['value']:.1%} with all."
    cut = [f"{point['rows']}" for point in points if point.get("cut_short")]
    if cut:
        says += f" max_seconds cut training short with {', '.join(cut)} rows."
    layout = axes("rows of feedback trained on", xaxis={"type": "log"}, yaxis={"tickformat": ".0%"})
    return Figure("rm-learning-curve", "Accuracy against data", says, [line], layout)
