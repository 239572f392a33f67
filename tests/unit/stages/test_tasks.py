"""The stage of lm-evaluation-harness: what is refused before anything runs, and its picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig
from lodestar.errors import ConfigError
from lodestar.recipe.plan import plan
from lodestar.report.breakdown import alignment_tax
from lodestar.report.facts import Facts


def _run(tmp_path: Path, **options: Any) -> RunConfig:
    told = {"name": "x", "runs_dir": str(tmp_path), "model": {"path": str(tmp_path)}, "stages": {"tasks": options}}
    return RunConfig.model_validate(told)


def test_a_missing_harness_and_a_missing_folder_are_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"stages.tasks: needs lm-evaluation-harness: pip install"):
        plan(_run(tmp_path, names=["piqa"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"stages.tasks.include: .*nowhere is no folder of task files"):
        plan(_run(tmp_path, names=["piqa"], include=str(tmp_path / "nowhere")))
    assert plan(_run(tmp_path, names=["piqa"], include=str(tmp_path))).steps[-1].name == "tasks"


def test_the_picture_says_the_change_and_shows_what_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 90}

    accuracy = {"before": rate(0.6), "after": rate(0.5), "change": rate(-0.1)}
    perplexity = {"before": {"value": 9.0}, "after": {"value": 12.0}, "change": {"value": 3.0}}
    found = {"tasks": {"piqa": {"acc": accuracy}, "wikitext": {"word_perplexity": perplexity}}, "cut_contexts": 0}
    facts = Facts.__new__(Facts)
    object.__setattr__(facts, "results", {"tasks": found})
    figure = alignment_tax(facts)
    assert figure is not None
    assert "piqa, acc −0.100 [−0.200, +0.000]; wikitext, word_perplexity 9 → 12" in figure.says
    assert [trace["x"] for trace in figure.data] == [[0.5], [0.6]]
    object.__setattr__(facts, "results", {})
    assert alignment_tax(facts) is None
