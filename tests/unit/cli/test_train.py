"""`lodestar train`: one stage, on data that are whole and the configuration's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lodestar.cli.train import train
from lodestar.errors import ConfigError, ResumeRefused
from lodestar.layout import RunFolder

RUN = {
    "name": "t",
    "data": {"demonstration_rows": 100, "comparison_rows": 100, "prompt_rows": 20, "max_prompt_tokens": 32},
    "model": {"architecture": {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 2}},
    "sft": {"epochs": 1, "batch_tokens": 1024, "evaluations_per_epoch": 1},
    "evaluation": {"prompts": 8},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**RUN, "runs_dir": str(tmp_path)}))
    return path


def test_a_stage_makes_the_data_it_needs_whole(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "t")
    (folder.data / "demonstrations").mkdir(parents=True)  # a data stage that was killed left this
    train("sft", config, [])
    assert str(folder.sft) in capsys.readouterr().out.replace("\n", "")
    assert json.loads((folder.data / "counts.json").read_text())["demonstrations.train"] > 50
    made = (folder.data / "counts.json").stat().st_mtime_ns
    train("sft", config, ["sft.learning_rate=1e-3"])
    assert (folder.data / "counts.json").stat().st_mtime_ns == made, "whole data are not made again"


def test_data_made_otherwise_are_not_trained_on(config: Path, tmp_path: Path) -> None:
    train("sft", config, [])
    with pytest.raises(ResumeRefused, match=r"data\.demonstration_rows \(was 100, is 50\)"):
        train("sft", config, ["data.demonstration_rows=50"])


def test_a_stage_that_the_run_does_not_have_is_named(config: Path) -> None:
    with pytest.raises(ConfigError, match="pretrain: is not set in"):
        train("pretrain", config, [])
