"""The card's page needs nothing but its file, and says what the card says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.errors import DataError
from lodestar.preference.card import Judged, make_card
from lodestar.preference.pairs import comparisons
from lodestar.recipe.folder import RunFolder
from lodestar.records import Choice, Feedback, Ranking
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


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (2.0, None, None, "no temperature is applied: on held-out pairs the scores say nothing, or the opposite"),
        (0.0, 0.0, 1.5, "no temperature is applied: on held-out pairs the scores were never wrong"),
        (0.8, 3.0, None, "held-out pairs fit 3.00 best, but also every one above 0.80"),
        (0.0, 0.4, 0.9, "held-out pairs fit 0.40 best, but also every one below 0.90"),
        (0.7, 1.2, 2.0, "held-out pairs fit 1.20 best, 95% interval 0.70–2.00, and 1 as well"),
    ],
)
def test_the_page_says_why_no_temperature_is_applied(
    low: float, value: float | None, high: float | None, said: str
) -> None:
    card = _card()
    calibration = card["calibration"]
    assert isinstance(calibration, dict)
    calibration |= {"temperature": value, "temperature_low": low, "temperature_high": high}
    calibration.pop("scaled", None)
    (figure,) = [figure for figure in card_pictures(card) if figure.id == "rm-reliability"]
    assert said in figure.says
    assert len(figure.data) == 2


def test_the_page_gives_the_interval_of_the_temperature_that_it_applies() -> None:
    rows = [Feedback(f"p{i}", ("a", "b"), (Choice(0, 1, float(i % 10 < 7)),)) for i in range(400)]
    judged = Judged(rows, [5.0, 1.0] * 400, [1] * 800)  # as sure as σ(4), right in seven of ten
    card = make_card(comparisons(rows), judged, [0.0], judged)
    (figure,) = [figure for figure in card_pictures(card) if figure.id == "rm-reliability"]
    found = re.search(r"held-out temperature ([\d.]+), 95% interval ([\d.]+)–([\d.]+) \(lighter\)", figure.says)
    assert found is not None
    low, value, high = (float(found[group]) for group in (2, 1, 3))
    assert value == pytest.approx(4 / math.log(7 / 3), abs=0.01)
    assert low < value < high
    assert len(figure.data) == 3


def test_the_page_says_that_training_was_cut_short() -> None:
    card = _card()
    cut, other = {"done": 320, "total": 960}, {"done": 5, "total": 960}
    card["training"] = {"cut_short": cut, "other_members": [{"cut_short": None}, {"cut_short": other}]}
    card["learning_curve"][0]["cut_short"] = cut  # type: ignore[index]
    says = {figure.id: figure.says for figure in card_pictures(card)}
    for steps in (320, 5):
        assert f"max_seconds cut its training short at {steps} of 960 steps." in says["rm-accuracy"]
    assert says["rm-learning-curve"].endswith("max_seconds cut training short with 6 rows.")


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


def test_a_runs_card_is_written_where_no_digest_is_broken(example_run: RunFolder) -> None:
    made = example_run.store.path("reward/reward")
    for named in (example_run.root, made, made / "card.json"):
        assert write_card_page(named) == example_run.root / "card.html"
        example_run.store.check_seals(example_run.plan.steps)
    assert f"<h1>{example_run.run.name}</h1>" in write_card_page(example_run.root).read_text()


def test_a_card_is_called_by_its_files_name(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "hh.json").write_text(json.dumps(_card()))
    assert "<h1>hh</h1>" in write_card_page(tmp_path / "cards" / "hh.json").read_text()
