"""`lodestar compare`, as a person runs it: real processes, what is shared is made once, what is done is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

LODESTAR = Path(sys.executable).with_name("lodestar")
TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "model": {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 96}},
    "stages": {
        "data": {"demonstration_rows": 200, "comparison_rows": 200, "prompt_rows": 100, "max_prompt_tokens": 32},
        "sft": {"epochs": 1.0, "evaluations_per_epoch": 1},
        "reward": {"epochs": 1.0, "evaluations_per_epoch": 1},
        "filtered": None,
        "ppo": {"steps": 2, "batch": 8, "max_tokens": 16, "epochs": 1, "running": {"every": 0}},
        "evaluate": {"prompts": 16},
    },
    "compare": {
        "instruct-gpt": {},
        "sft": {},
        "sft-5x": {"recipe": "sft", "stages": {"data": {"demonstration_rows": 1000}}},
    },
}


def _start(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [LODESTAR, "compare", *arguments, "--plain"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def _compare(*arguments: str | Path) -> tuple[int, str, str]:
    with _start(*arguments) as process:
        out, error = process.communicate()
    return process.returncode, out, error


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_comparison_shares_what_is_alike_survives_ctrl_c_and_runs_only_what_is_missing(tmp_path: Path) -> None:
    file, root = tmp_path / "tiny.yaml", tmp_path / "tiny-compare"
    file.write_text(yaml.safe_dump({**TINY, "runs_dir": str(tmp_path)}, sort_keys=False))

    with _start(file, "--seeds", "2") as stopped:
        deadline = time.monotonic() + 300
        while not (root / "instruct-gpt-s3" / "sft" / "seal.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stopped.send_signal(signal.SIGINT)
        _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + signal.SIGINT
    assert "the same command again goes on" in said

    code, out, error = _compare(file, "--seeds", "2")
    assert code == 0, error
    assert "[2/6] sft, seed 3: data, sft, reward shared" in out
    assert "[3/6] sft-5x, seed 3\n" in out
    found = json.loads((root / "compare.json").read_text())
    assert {row["method"]: row["seeds"] for row in found["rows"]} == {"instruct-gpt": 2, "sft": 2, "sft-5x": 2}
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["sft"]["win_rate"] == 0.5
    assert (rows["sft"]["labels"], rows["sft"]["tokens"], rows["sft"]["kl"]) == (0, 0, 0.0)
    assert rows["instruct-gpt"]["labels"] > 100
    assert 0 < rows["instruct-gpt"]["tokens"] <= 2 * 8 * 16
    assert rows["sft-5x"]["kl"] is None
    assert found["tau"] is not None
    seals = [root / f"{method}-s3" / "sft" / "seal.json" for method in ("instruct-gpt", "sft")]
    assert seals[0].read_text() == seals[1].read_text()

    code, out, error = _compare(file, "--seeds", "2", "--recipes", "sft,instruct-gpt", "evaluate.prompts=12")
    assert code == 0, error
    assert out.count("evaluate: starts") == 4
    assert "sft: starts" not in out
    assert json.loads((root / "compare.json").read_text())["runs"][0]["win_rate"]["n"] == 12

    code, out, error = _compare(file, "--seeds", "3", "--recipes", "sft,instruct-gpt", "evaluate.prompts=12")
    assert code == 0, error
    assert out.count("finished before") == 4
    assert json.loads((root / "compare.json").read_text())["rows"][0]["seeds"] == 3
    assert "<h1>tiny</h1>" in (root / "compare.html").read_text()

    finished = sorted(path for path in root.iterdir() if not path.name.startswith("sft-5x") and path.is_dir())
    code, out, error = _compare(*finished, "--output", tmp_path / "again")
    assert code == 0, error
    again = json.loads((tmp_path / "again" / "compare.json").read_text())
    assert {row["method"]: row["win_rate"] for row in again["rows"]}["sft"] == 0.5
    assert len(again["runs"]) == len(finished)

    code, _, error = _compare(file, "--seeds", "2", "sft.epochs=2")
    assert code == 2
    assert "sft.epochs (was 1.0, is 2.0)" in error
