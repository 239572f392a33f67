"""A method of one's own is a file and an entry point outside the library: `lodestar run` finds it without a fork."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LODESTAR = Path(sys.executable).with_name("lodestar")
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
CONFIG = {
    "name": "own",
    "model": {"architecture": {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 2}},
    "stages": {
        "data": {"demonstration_rows": 60, "comparison_rows": 60, "prompt_rows": 20, "evaluation_rows": 8},
        "longest": {"kind": "shortest", "keep": 5},
    },
}


def install(site: Path, source: str) -> None:
    """What pip would leave: the module, and a .dist-info folder that names its entry point."""
    (site / "mine").mkdir(parents=True)
    (site / "mine" / "__init__.py").write_text(source)
    about = site / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lodestar.stages]\nshortest = mine:Shortest\n")


def lodestar(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    return subprocess.run([LODESTAR, *arguments], capture_output=True, text=True, env=environment, timeout=110)


@pytest.mark.timeout(180)
def test_a_stage_from_outside_the_library_runs_as_docs_show_it(tmp_path: Path) -> None:
    """The ten lines are those of docs/architecture.md."""
    (source,) = re.findall(r"^```python\n(.*?class Shortest.*?)^```", PAGE.read_text(), re.S | re.M)
    written = [line for line in source.splitlines() if line.strip()]
    assert len([line for line in written if not line.startswith("from ")]) <= 10
    install(tmp_path / "site", source)
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "runs_dir": str(tmp_path)}, sort_keys=False))

    done = lodestar(tmp_path / "site", "run", config, "--plain")
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "own" / "longest" / "demonstrations" / "train.jsonl").read_text().splitlines()
    whole = (tmp_path / "own" / "data" / "demonstrations" / "train.jsonl").read_text().splitlines()
    lengths = sorted(len(json.loads(line)["completion"]) for line in whole)
    assert [len(json.loads(line)["completion"]) for line in made] == lengths[:5]
    seal = json.loads((tmp_path / "own" / "longest" / "seal.json").read_text())
    assert seal["asked"]["options"] == {"keep": 5}

    refused = lodestar(tmp_path / "site", "config", "check", config, "longest.keep=0")
    assert refused.returncode == 2
    assert "stages.longest: keep" in refused.stderr

    without = lodestar(tmp_path, "run", config, "--plain", "--resume")
    assert without.returncode == 2
    assert "there is no stage 'shortest'" in without.stderr
