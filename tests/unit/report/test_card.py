"""The card's page needs nothing but its file, and says what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.errors import DataError
from lodestar.preference.card import Judged, make_card
from lodestar.preference.pairs import comparisons
from lodestar.records import Feedback, Ranking
from lodestar.report.card import card_pictures, write_card_page

ROWS = [
    Feedback(
        f"p{i}",
        (f"a b {i}", "c", f"d e f {i}"),
        Ranking(((i % 3,), ((i + 1) % 3,), ((i + 2) % 3,))),
        subset=f"s{i % 2}",
    )
    for i in range(12)
]


def _card() -> dict[str, object]:
    judged = Judged(ROWS, [float(k % 5) for k in range(36)], [3, 1, 4] * 12, {}, [0.1 * (k % 3) for k in range(36)])
    card = make_card(comparisons(ROWS), judged, [0.0], judged)
    rate = card["accuracy"]
    return card | {"learning_curve": [{"rows": 6, **rate}, {"rows": 12, **rate}]}


def test_every_figure_of_a_card_has_its_picture() -> None:
    ids = [figure.id for figure in card_pictures(_card())]
    assert len(set(ids)) == len(ids)
    wanted = "accuracy reliability histogram length length-difference confidence doubt learning-curve"
    assert {f"rm-{name}" for name in wanted.split()} <= set(ids)
    assert sum(name.startswith("rm-subset-") for name in ids) == 2


@pytest.mark.parametrize(("temperature", "said"), [(100.0, True), (2.0, False)])
def test_the_page_says_when_the_scores_gave_no_temperature(temperature: float, said: bool) -> None:
    card = _card()
    calibration = card["calibration"]
    assert isinstance(calibration, dict)
    calibration["temperature"] = temperature
    (figure,) = [figure for figure in card_pictures(card) if figure.id == "rm-reliability"]
    assert ("the scores say nothing, or the opposite" in figure.says) is said


def test_the_command_writes_a_page_that_fetches_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "helpful"
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(_card()))
    result = CliRunner().invoke(app, ["card", str(folder)])
    page = (folder / "card.html").read_text()
    assert result.output.strip() == str(folder / "card.html")
    assert "reward model card" in page
    assert "Kendall's τ per prompt" in page or "Kendall&#39;s τ per prompt" in page
    assert "default-src 'none'" in page
    assert "rm-learning-curve" in page


def test_a_missing_or_damaged_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no card\.json; train a reward model first"):
        write_card_page(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(DataError, match=r"card\.json:1: is not JSON"):
        write_card_page(tmp_path)
