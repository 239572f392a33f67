"""Comparisons made from demonstrations alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.data.contrasts import EDITS, contrasts, edited
from lodestar.data.files import read_feedback, write_jsonl
from lodestar.data.survey import check
from lodestar.errors import InvalidArgument
from lodestar.records import Choice, Demonstration

SHOWN = [
    Demonstration("color of the fox", "the fox is red"),
    Demonstration("color of the owl", "the owl is brown"),
    Demonstration("home of the owl", "in the old tower"),
]


def test_an_edit_takes_one_stretch_of_words_and_keeps_the_rest() -> None:
    found = {edited("the fox is red", "the owl is brown", random.Random(i)) for i in range(20)}
    assert found == {"the owl is red", "the fox is brown"}
    longer = {edited("a  b\nc", "a x y c d", random.Random(i)) for i in range(20)}
    assert longer == {"a x y\nc", "a  b\nc d"}
    assert edited("same words", " same  words", random.Random(0)) == "same words"


def test_a_demonstration_is_preferred_to_another_prompts_and_to_its_own_edits() -> None:
    rows = contrasts(SHOWN, 30, seed=1)
    assert len(rows) == 30
    for row in rows:
        own = next(shown for shown in SHOWN if shown.prompt == row.prompt)
        assert row.completions[0] == own.completion
        assert own.completion not in row.completions[1:]
        assert row.verdict == tuple(Choice(0, i, 1.0) for i in range(1, len(row.completions)))
        assert 2 <= len(row.completions) <= EDITS + 2
    fox = [row for row in rows if row.prompt == "color of the fox"]
    assert all(row.completions[1] == "the owl is brown" for row in fox), "the likest prompt's demonstration"
    assert any("the fox is brown" in row.completions for row in fox)


def test_contrasts_depend_on_their_seed_alone() -> None:
    assert contrasts(SHOWN, 20, seed=1) == contrasts(SHOWN, 20, seed=1) != contrasts(SHOWN, 20, seed=2)


def test_nothing_to_hold_against_each_other_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="two different ones"):
        contrasts([SHOWN[0]] * 3, 5, seed=0)


def test_the_command_writes_feedback_that_is_read_again(tmp_path: Path) -> None:
    source, output = tmp_path / "shown.jsonl", tmp_path / "contrasts.jsonl"
    write_jsonl(source, SHOWN)
    with source.open("a") as file:
        file.write('{"prompt": "no completion"}\n')
    said = CliRunner().invoke(app, ["data", "contrast", str(source), str(output), "--rows", "7", "--seed", "3"]).output
    assert "7 rows from 3 demonstrations, 1 bad rows left out" in said
    assert read_feedback(output) == contrasts(SHOWN, 7, seed=3)
    assert check(output).rows == 7
