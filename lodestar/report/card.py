"""A reward model's card as pictures: for the run's report, and as a page of its own (``lodestar card``)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lodestar.errors import DataError
from lodestar.report import figures
from lodestar.report.facts import Row
from lodestar.report.figures import Figure, axes, intervals
from lodestar.report.shell import assets, template


def card_pictures(card: Row) -> list[Figure]:
    """Every picture that the card has figures for."""
    found = [figures.accuracies(card)]
    if card.get("calibration"):
        found.append(figures.reliability(card))
    found += [figures.histogram(card), figures.score_by_length(card)]
    for name, rates in card.get("subsets", {}).items():
        found.append(_rates(f"rm-subset-{len(found)}", f"Accuracy on {name}", [*rates.items()], "model and baselines"))
    by_length = [(f"{row['winner_longer_by']:+.0f} tokens", row) for row in card.get("by_length_difference", [])]
    found += _listed("rm-length-difference", "By how much longer the winner is", by_length)
    confidence = [(row["confidence"], row) for row in card.get("by_confidence", [])]
    found += _listed("rm-confidence", "By the annotators' confidence", confidence)
    doubt = [(row["doubt"], row) for row in card.get("ensemble", {}).get("by_doubt", [])]
    found += _listed("rm-doubt", "By the ensemble's agreement", doubt)
    if len(card.get("learning_curve", [])) > 1:
        found.append(_learning_curve(card["learning_curve"]))
    return found


def write_card_page(path: Path, output: Path | None = None) -> Path:
    """Writes the page of a card.json, or of the one in a model's or run's folder; returns where it is.

    Raises:
        DataError: there is no card, or it is damaged.
    """
    places = [path] if path.is_file() else [path / "card.json", path / "models" / "reward" / "card.json"]
    source = next((place for place in places if place.is_file()), None)
    if source is None:
        raise DataError(path, "holds no card.json; train a reward model first")
    try:
        card = json.loads(source.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(source, f"is not JSON: {error.msg}", error.lineno) from None
    output = output or source.with_suffix(".html")
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(render_card(card, source.parent.name), encoding="utf-8")
    temporary.replace(output)
    return output


def render_card(card: Row, name: str) -> str:
    """The page's HTML: style, script and pictures inside, nothing fetched."""
    pictures = card_pictures(card)
    return template("card.html.j2").render(name=name, card=card, pictures=pictures, **assets(pictures))


def _listed(id: str, title: str, rates: Sequence[tuple[str, Row]]) -> list[Figure]:
    return [_rates(id, title, rates, "accuracy of each part")] if len(rates) > 1 else []


def _rates(id: str, title: str, rates: Sequence[tuple[str, Row]], what: str) -> Figure:
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


def _learning_curve(points: Sequence[Row]) -> Figure:
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
    layout = axes("rows of feedback trained on", xaxis={"type": "log"}, yaxis={"tickformat": ".0%"})
    return Figure("rm-learning-curve", "Accuracy against data", says, [line], layout)
