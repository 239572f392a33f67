"""A run's folder on this machine: what --fresh throws away."""

from __future__ import annotations

from pathlib import Path

from lodestar.crew.here import opened
from lodestar.recipe.folder import people_of
from lodestar.recipe.plan import Plan


def test_what_people_said_outlives_fresh_even_one_that_was_killed(tmp_path: Path) -> None:
    for path in ("config.yaml", "sft/seal.json", "feedback/feedback.sqlite"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("x")
    assert people_of(tmp_path) == tmp_path / "feedback"
    opened(tmp_path, Plan(), resume=False, fresh=True, begins=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feedback"]
    assert (tmp_path / "feedback" / "feedback.sqlite").exists()
    opened(tmp_path, Plan(), resume=False, fresh=False, begins=False)
    assert people_of(tmp_path / "feedback") == tmp_path / "feedback", "a folder of its own"
