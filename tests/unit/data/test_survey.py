"""What ``lodestar data check`` counts, and that ``lodestar data split`` keeps prompts apart."""

from __future__ import annotations

import json
from pathlib import Path

import krippendorff
import pytest
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.data.files import read_feedback
from lodestar.data.survey import check, split
from lodestar.errors import DataError, InvalidArgument


def _file(folder: Path) -> Path:
    rows = [
        {"prompt": f"question {i % 10}", "completions": ["a b", f"c {i}"], "label": label, "annotator": name}
        for i in range(20)
        for name, label in (("ada", 1.0), ("carl", 0.5 if i % 2 else 1.0))
    ]
    bad = [
        {"prompt": "x", "completions": ["a", ""], "label": 1},
        {"prompt": "x", "completions": ["a", "b"], "label": 3},
    ]
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], *bad]))
    return path


def test_a_survey_counts_what_a_person_would(tmp_path: Path) -> None:
    found = check(_file(tmp_path))
    assert (found.rows, found.prompts, found.comparisons, found.ties, found.duplicates) == (41, 10, 41, 10, 1)
    assert found.kinds == {"choices": 41}
    assert found.completions == {2: 41}
    assert found.annotators == {"ada": 21, "carl": 20}
    assert found.completion_words == (2, 2, 2, 2, 2)
    assert found.bad_rows[0].endswith("votes.jsonl:42: completions[1] is empty")
    assert found.bad_rows[1].endswith("votes.jsonl:43: label must be between 0 and 1, got 3.0")
    ada, carl = [1.0] * 20, [1.0, 0.5] * 10
    both = [ada + [1 - label for label in ada], carl + [1 - label for label in carl]]  # every pair both ways round
    assert found.alpha["pairs"] == pytest.approx(krippendorff.alpha(both, level_of_measurement="ordinal"))


def test_the_command_prints_counts_and_bad_rows(tmp_path: Path) -> None:
    path = _file(tmp_path)
    shown = CliRunner().invoke(app, ["data", "check", str(path), "--bad-rows", "1"]).output
    assert "41 rows (choices 41), 10 prompts" in shown
    assert "comparisons: 41, ties 10 (24.4%); duplicate rows: 1" in shown
    assert "Krippendorff's alpha: pairs" in shown
    assert "votes.jsonl:42: completions[1] is empty" in shown
    assert "… and 1 more" in shown
    whole = json.loads(CliRunner().invoke(app, ["data", "check", str(path), "--json"]).output)
    assert len(whole["bad_rows"]) == 2


def test_strict_refuses_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"votes\.jsonl:42: "):
        check(_file(tmp_path), strict=True)


def test_a_split_shares_no_prompt_and_loses_no_row(tmp_path: Path) -> None:
    path, folder = _file(tmp_path), tmp_path / "out"
    counts = split(path, folder, held_out=0.3, seed=1)
    train, apart = (read_feedback(folder / f"{name}.jsonl") for name in ("train", "held_out"))
    assert not {row.prompt for row in train} & {row.prompt for row in apart}
    assert len({row.prompt for row in apart}) == 3
    assert (len(train), len(apart)) == (counts["train"], counts["held_out"])
    assert len(train) + len(apart) == 41
    assert (folder / "bad_rows.txt").read_text().count("\n") == counts["bad_rows"] == 2
    assert json.loads((folder / "counts.json").read_text())["bad_rows"] == 2


def test_a_split_depends_on_its_seed_alone(tmp_path: Path) -> None:
    path = _file(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split(path, tmp_path / name, held_out=0.3, seed=seed)
    a, b, c = ((tmp_path / name / "held_out.jsonl").read_text() for name in "abc")
    assert a == b != c


def test_a_split_that_leaves_a_side_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "completions": ["a", "b"], "label": 1}\n')
    with pytest.raises(DataError, match="has 1 prompts: too few to hold 20% out"):
        split(path, tmp_path / "out", held_out=0.2, seed=0)
    with pytest.raises(InvalidArgument, match=r"held_out: must be between 0 and 1, got 1\.5"):
        split(path, tmp_path / "out", held_out=1.5, seed=0)
