"""A reward model's card as pictures: for the run's report, and as a page of its own (``lodestar card``)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lodestar.errors import DataError
from lodestar.report import card_figures
from lodestar.report.drawing import Figure
from lodestar.report.facts import Row
from lodestar.report.shell import assets, template


def card_pictures(card: Row) -> list[Figure]:
    """Every picture that the card has figures for."""
    found = [card_figures.accuracies(card)]
    if card.get("calibration"):
        found.append(card_figures.reliability(card))
    found += [card_figures.histogram(card), card_figures.score_by_length(card)]
    for name, rates in card.get("subsets", {}).items():
        found.append(
            card_figures.parts(
                f"rm-subset-{len(found)}", f"Accuracy on {name}", [*rates.items()], "model and baselines"
            )
        )
    groups = [(name, group["accuracy"]) for name, group in card.get("groups", {}).items()]
    found += card_figures.listed("rm-groups", "Accuracy on what each declared group said", groups)
    by_length = [(f"{row['winner_longer_by']:+.0f} tokens", row) for row in card.get("by_length_difference", [])]
    found += card_figures.listed("rm-length-difference", "By how much longer the winner is", by_length)
    confidence = [(row["confidence"], row) for row in card.get("by_confidence", [])]
    found += card_figures.listed("rm-confidence", "By the annotators' confidence", confidence)
    doubt = [(row["doubt"], row) for row in card.get("ensemble", {}).get("by_doubt", [])]
    found += card_figures.listed("rm-doubt", "By the ensemble's agreement", doubt)
    if len(card.get("learning_curve", [])) > 1:
        found.append(card_figures.learning_curve(card["learning_curve"]))
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
