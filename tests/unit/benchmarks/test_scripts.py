"""Every benchmark imports what there is and tells its options; what it measures is nobody's business here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "harness")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_tells_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    for other in (*SCRIPTS, "harness"):  # a script's own folder comes first, whatever was imported before
        monkeypatch.delitem(sys.modules, other, raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert left.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out
