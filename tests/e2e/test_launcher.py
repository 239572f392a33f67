"""`lodestar run`, from data to report, as a person runs it: real processes, a real Redis, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lodestar.local.tiny import llama, tokenizer
from lodestar.model.weights import save_model

LODESTAR = Path(sys.executable).with_name("lodestar")
TINY = {
    "name": "tiny",
    "seed": 3,
    "data": {"demonstration_rows": 300, "comparison_rows": 300, "prompt_rows": 200, "max_prompt_tokens": 48},
    "model": {"architecture": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "context_tokens": 128}},
    "sft": {"epochs": 1.0, "evaluations_per_epoch": 1},
    "reward_model": {"epochs": 1.0, "evaluations_per_epoch": 1},
    "ppo": {"steps": 4, "batch": 16, "max_tokens": 24, "epochs": 2},
    "evaluation": {"prompts": 24, "best_of": [2], "watch_every": 2, "watch_prompts": 8},
    "learner": {"checkpoint_every": 1},
}
FIELDS = {
    "win_rate": {"value", "low", "high", "n", "judge"},
    "reward": {"before", "after"},
    "kl": None,
    "rivals": {"sft_temperature", "sft_greedy", "sft_on_best", "best_of_2"},
    "greedy": {"value", "low", "high", "n"},
    "policy": None,
    "learned": {"verdict", "entropy", "kl", "sentence"},
    "cut_short": None,
    "over_optimised_at": None,
    "reward_model": {"accuracy", "low", "high", "n"},
    "rounds": None,
    "steps": None,
    "wall_seconds": None,
    "seconds": {"data", "sft", "reward", "filtered", "ppo", "evaluate"},
    "response_tokens_per_second": None,
    "rollouts": {"issued", "trained", "failed", "superseded", "duplicates_refused"},
    "services": None,
    "seed": None,
    "versions": None,
}
SERVICES = ["against-0", "filtered-0", "learner-0", "policy-0", "reference-0", "reward-0", "rollout-0"]


def _config(folder: Path, **ppo: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "runs_dir": str(folder), "ppo": {**TINY["ppo"], **ppo}}))  # type: ignore[dict-item]
    return path


def _start(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [LODESTAR, "run", *arguments, "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _until_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    metrics = run / "ppo" / "unfinished" / "figures" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= step):
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.02)


def _told_until(launcher: subprocess.Popen[str], words: str) -> str:
    assert launcher.stdout is not None
    told = ""
    for line in launcher.stdout:
        told += line
        if words in line:
            return told
    raise AssertionError(f"it ended without {words!r}: {told}")


def _descendants(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(launcher.pid).children(recursive=True)
    assert len(found) >= 8, "fork server, Redis, five services and the weights server"
    return found


def _all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluate" / "figures" / "samples.jsonl").read_text().splitlines()]


def _temporary_files() -> set[str]:
    return {path.name for path in Path("/tmp").iterdir() if path.name.startswith(("pymp", "tmp", "redis", "lodestar"))}


@pytest.mark.timeout(150)
def test_a_run_survives_ctrl_c_and_a_killed_launcher_and_ends_with_its_summary(tmp_path: Path) -> None:
    config, run = _config(tmp_path), tmp_path / "tiny"
    before = _temporary_files()

    with _start(config) as interrupted:
        _until_step(run, 1)
        processes = _descendants(interrupted)
        interrupted.send_signal(signal.SIGINT)
        _, said = interrupted.communicate(timeout=30)
    assert interrupted.returncode == 128 + signal.SIGINT
    assert f"lodestar run {config} --resume goes on" in said
    _all_gone(processes)
    assert not (run / "redis").exists()

    with _start(_config(tmp_path, steps=3), "--resume") as changed:
        _, said = changed.communicate(timeout=30)
    assert changed.returncode == 2
    assert "ppo.steps (was 4, is 3)" in said
    assert "--from ppo makes ppo anew" in said

    with _start(_config(tmp_path), "--resume") as killed:
        _until_step(run, 2)
        processes = _descendants(killed)
        killed.kill()
    _all_gone(processes)

    with _start(config, "--resume") as late:
        told = _told_until(late, "evaluate: starts")
        late.send_signal(signal.SIGINT)
        late.communicate(timeout=30)
    assert late.returncode == 128 + signal.SIGINT
    assert "sft: starts" not in told

    with _start(config, "--resume") as finished:
        told, said = finished.communicate(timeout=60)
    assert finished.returncode == 0, said
    assert "ppo: starts" not in told
    assert "win rate" in told
    assert _temporary_files() <= before

    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() == FIELDS.keys()
    for name, fields in FIELDS.items():
        assert fields is None or set(summary[name]) == fields, name
    assert summary["steps"] == 4
    assert summary["rollouts"]["trained"] == 4 * 16
    assert sorted(service["name"] for service in summary["services"]) == SERVICES
    assert len({service["pid"] for service in summary["services"]}) == len(SERVICES)
    assert all(service["rpcs"] > 0 and service["tokens"] > 0 for service in summary["services"]), summary["services"]
    assert (run / "report.html").stat().st_size > 1_000_000
    assert not list(run.glob("**/unfinished")) + list(run.glob("**/.*partial")), "nothing in a temporary name"
    samples = _samples(run)
    assert [(row["before"]["step"], row["after"]["step"]) for row in samples] == [(0, 4)] * 24
    assert not list((run / "services").iterdir())

    again = subprocess.run([LODESTAR, "eval", config, "--plain"], capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    repeated = _samples(run)
    assert [(row["before"]["step"], row["after"]["step"]) for row in repeated] == [(0, 4)] * 24
    same = sum(row["before"]["text"] == old["before"]["text"] for row, old in zip(repeated, samples, strict=True))
    assert same >= 20, "the SFT model is asked again, with the same seeds; rounding may move a sample"


@pytest.mark.timeout(120)
def test_a_model_and_preferences_of_ones_own_need_no_sft(tmp_path: Path) -> None:
    """The README's configuration, small."""
    words = tokenizer(64)
    save_model(llama(hidden=32, layers=2, vocab=64, eos_bias=2.0), words, tmp_path / "mine")
    source = tmp_path / "preferences"
    source.mkdir()
    rows = [{"prompt": f"t{i} t5", "chosen": f"t7 t{3 + i % 9}", "rejected": "t8 t9 t9"} for i in range(3, 60)] * 2
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "own.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "name": "own",
                "runs_dir": str(tmp_path),
                "model": {"path": str(tmp_path / "mine")},
                "sft": None,
                "data": {"kind": "jsonl", "root": str(source)},
                "reward_model": {"epochs": 1.0},
                "ppo": {"steps": 2, "batch": 8, "max_tokens": 8, "ema": 0.9},
                "evaluation": {"judge": "reward", "prompts": 4, "best_of": [2], "watch_every": 0},
            }
        )
    )
    with _start(config) as run:
        _, said = run.communicate(timeout=100)
    assert run.returncode == 0, said
    assert json.loads((tmp_path / "own" / "summary.json").read_text())["steps"] == 2
    assert {row["after"]["step"] for row in _samples(tmp_path / "own")} == {2}
    assert not (tmp_path / "own" / "sft").exists()


def test_port_and_folder_conflicts_are_told_in_a_sentence(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with _start(config) as first:
        deadline = time.monotonic() + 20
        while not (tmp_path / "tiny" / "config.yaml").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert (tmp_path / "tiny").stat().st_mode & 0o777 == 0o700, "its owner's alone"
        with _start(config, "--resume") as second:
            _, said = second.communicate(timeout=20)
        assert second.returncode == 2
        assert f"another launcher (pid {first.pid})" in said
        first.terminate()
        first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM
