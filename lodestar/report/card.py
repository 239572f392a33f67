"""A reward model's card as pictures: for the run's report, and as a page of its own (``lodestar card``)."""

from __future__ import annotations

from pathlib import Path

from lodestar.errors import DataError
from lodestar.files import read_json, write_atomically
from lodestar.recipe import named
from lodestar.recipe.store import SEAL
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
    """Writes the page of a card.json, or of the one in a model's folder or of a run's newest reward model; returns
    where it is.

    Args:
        output: unset is beside the card; of a run ``card.html`` in its folder, since what a stage made has a digest.

    Raises:
        DataError: there is no card, or it is damaged.
        ConfigError, FailedPrecondition: see lodestar.recipe.named.run_folder.
    """
    source, name = path, path.stem
    if named.is_run(path) or path.suffix in (".yaml", ".yml"):
        folder = named.run_folder(path)
        source, name = (folder.newest("reward_model") or folder.root) / "card.json", folder.run.name
    elif path.is_dir() or path.name == "card.json":
        source = path / "card.json" if path.is_dir() else path
        name = source.parent.resolve().name
    if not source.is_file():
        raise DataError(path, "holds no card.json; train a reward model first")
    if output is None:
        stage = next((parent for parent in source.resolve().parents if (parent / SEAL).exists()), None)
        output = source.with_suffix(".html") if stage is None else stage.parent / "card.html"
    write_atomically(output, render_card(read_json(source), name))
    return output


def render_card(card: Row, name: str) -> str:
    """The page's HTML: style, script and pictures inside, nothing fetched."""
    pictures = card_pictures(card)
    return template("card.html.j2").render(name=name, card=card, pictures=pictures, **assets(pictures))
