"""Where a reward function's module is looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lodestar.errors import ConfigError
from lodestar.rewards.functions import load_function

JUDGE = "def score(prompts, completions):\n    return [1.0] * len(prompts)\n"


@pytest.mark.parametrize("spec", ["my_judge:score", "my_judge.py:score"])
def test_a_module_or_file_of_the_current_folder_is_found_by_every_process(tmp_path: Path, spec: str) -> None:
    (tmp_path / "my_judge.py").write_text(JUDGE)
    (tmp_path / "yaml.py").write_text("raise SystemExit('a file of the current folder was imported')")
    script = f"""
from lodestar.rewards.functions import load_function
print(load_function("judge", {spec!r})(["a"], ["b"]))
import yaml
print(yaml.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    result, yaml = done.stdout.splitlines()
    assert result == "[1.0]"
    assert str(tmp_path) not in yaml


def test_a_module_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConfigError, match="module no_such_judge cannot be imported"):
        load_function("judge", "no_such_judge:score")
