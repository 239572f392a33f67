"""A run's figures, samples, options and report, told to real trackers and read back with each one's own reader."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lodestar.config import RunConfig, dump
from lodestar.files import write_jsonl
from lodestar.local.board import Board
from lodestar.tracking import beside
from lodestar.tracking.beside import tracked
from lodestar.tracking.follow import table

ROWS = [
    {"step": step, "time": 1_000.0 + step, "score": step / 8, "kl_k1": -step / 64, "seconds": {"collect": 0.25}}
    for step in (1, 2, 3)
]
FIGURES = {
    "ppo/score": [0.125, 0.25, 0.375],
    "ppo/kl_k1": [-1 / 64, -2 / 64, -3 / 64],
    "ppo/seconds.collect": [0.25] * 3,
}
SAMPLES = [{"prompt": "what color | is it ?", "before": "it is", "after": "blue", "gold_after": 1.5}]
EXTRAS = ("tensorboard", "wandb", "mlflow", "trackio")


def needs(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'lodestar-rlhf[{name}]'")


def run_of(folder: Path, *tracking: str) -> tuple[RunConfig, Path]:
    run = RunConfig.model_validate({"name": "tracked", "runs_dir": str(folder), "tracking": tracking})
    root = folder / "tracked"
    root.mkdir(exist_ok=True)
    (root / "config.yaml").write_text(dump(run))
    return run, root


def wait_for(what: Any, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def told(root: Path, name: str) -> int:
    path = root / "tracking" / "told.json"
    state = json.loads(path.read_text())["told"] if path.exists() else {}
    return int(state.get(name, {}).get("ppo", {}).get("rows", 0))


def conducted(run: RunConfig, root: Path, name: str) -> Board:
    """What a run leaves, in the order in which it does; the conductor dies once on the way."""
    board = Board("tracked", [])
    figures = root / "ppo" / "unfinished" / "figures"
    with tracked(run, root, board):
        write_jsonl(figures / "metrics.jsonl", ROWS[:2])
        wait_for(lambda: told(root, name) == 2)
    write_jsonl(figures / "metrics.jsonl", ROWS[:1])  # a learner that went back to its checkpoint
    with tracked(run, root, board):
        write_jsonl(figures / "metrics.jsonl", ROWS)
        write_jsonl(root / "evaluate" / "unfinished" / "figures" / "samples.jsonl", SAMPLES)
        (root / "report.html").write_text("<p>report</p>")
    return board


def series(rows: Iterator[tuple[str, int, float]]) -> dict[str, list[float]]:
    found: dict[str, dict[int, float]] = {}
    for name, step, value in rows:
        found.setdefault(name, {})[step] = value
    return {name: [values[step] for step in sorted(values)] for name, values in found.items()}


def read_tensorboard(root: Path) -> tuple[dict[str, list[float]], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(root / "tracking" / "tensorboard"))
    reader.Reload()
    found = {name: [event.value for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}
    assert [event.wall_time for event in reader.Scalars("ppo/score")] == [1001.0, 1002.0, 1003.0]
    assert [event.step for event in reader.Scalars("ppo/score")] == [1, 2, 3]
    texts = {name: reader.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in reader.Tags()["tensors"]}
    assert "ppo" in texts["config"]
    assert str(root / "report.html") in texts["files/report.html"]
    return found, texts["evaluate/samples"]


def read_mlflow(root: Path) -> tuple[dict[str, list[float]], str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'tracking' / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lodestar").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["name"] == "tracked"
    found = {
        name: [one.value for one in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)]
        for name in run.data.metrics
    }
    artifacts = root / "tracking" / "mlflow" / "artifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "report.html").read_text() == "<p>report</p>"
    return found, (artifacts / "evaluate" / "samples.md").read_text()


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run's file: W&B's own messages in LevelDB's log format (blocks of 32 KiB)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield Record.FromString(whole)
            whole = b""


def read_wandb(root: Path) -> tuple[dict[str, list[float]], str]:
    files = sorted((root / "tracking" / "wandb").rglob("*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    rows = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records if record.HasField("history")]  # fmt: skip
    found = series(
        (name, row["ppo/step"], value)
        for row in rows if "ppo/step" in row
        for name, value in row.items() if name.startswith("ppo/") and name != "ppo/step"
    )  # fmt: skip
    assert {record.run.run_id for record in records if record.HasField("run")} == {
        json.loads((root / "tracking" / "told.json").read_text())["run_id"]
    }
    artifacts = [record.request.log_artifact.artifact.name for record in records if record.HasField("request")]
    artifacts += [record.artifact.name for record in records if record.HasField("artifact")]
    assert any("report" in name for name in artifacts)
    summary = {
        item.key or ".".join(item.nested_key): item.value_json for record in records for item in record.summary.update
    }
    return found, json.loads(summary["evaluate/samples.md"])


def read_trackio(root: Path) -> tuple[dict[str, list[float]], str]:
    script = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage as S;"
        "(run,) = S.get_runs('lodestar'); print(json.dumps([run, S.get_logs('lodestar', run)], default=str))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(root / "tracking" / "trackio")}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    name, rows = json.loads(answer.stdout.splitlines()[-1])
    assert name == "tracked"
    found = series((name, row["step"], value) for row in rows for name, value in row.items() if name.startswith("ppo/"))
    (text,) = [row["evaluate/samples"] for row in rows if "evaluate/samples" in row]
    assert list((root / "tracking" / "trackio").rglob("report.html"))
    return found, text if isinstance(text, str) else text["_value"]


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "tensorboard" else pytest.mark.slow) for name in EXTRAS]
)
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow with SQLAlchemy 2.1
@pytest.mark.timeout(600)  # their imports alone take long on a busy machine
def test_a_tracker_holds_what_the_run_wrote(tmp_path: Path, name: str) -> None:
    needs(name)
    run, root = run_of(tmp_path, name)
    board = conducted(run, root, name)
    assert [message.text for message in board.messages] == []
    found, samples = READERS[name](root)
    assert found == FIGURES
    assert "what color" in samples
    assert "blue" in samples


def test_a_tracker_that_fails_costs_a_warning_and_the_others_go_on(tmp_path: Path) -> None:
    needs("tensorboard")
    run, root = run_of(tmp_path, "trackio", "tensorboard")
    (root / "tracking").mkdir()
    (root / "tracking" / "trackio").write_text("in the way")
    board = conducted(run, root, "tensorboard")
    warnings = {message.text for message in board.messages if message.level == "warning"}
    assert len(warnings) == 1
    assert "trackio" in warnings.pop()
    assert read_tensorboard(root)[0] == FIGURES


def test_a_trackers_process_that_dies_costs_a_warning(tmp_path: Path) -> None:
    run, root = run_of(tmp_path, "tensorboard")
    (root / "config.yaml").write_text("name: [")
    board = Board("tracked", [])
    with tracked(run, root, board):
        wait_for(lambda: board.messages)
    assert "exit code 1; the run goes on" in board.messages[0].text


def test_trackers_that_hang_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, root = run_of(tmp_path, "tensorboard")
    monkeypatch.setattr(beside, "LAST_SECONDS", 0.01)
    board = Board("tracked", [])
    with tracked(run, root, board):
        pass
    assert any("did not finish" in message.text for message in board.messages)


def test_a_run_without_trackers_starts_no_process(tmp_path: Path) -> None:
    run, root = run_of(tmp_path)
    with tracked(run, root, Board("tracked", [])):
        assert not (root / "tracking").exists()


def test_a_table_keeps_its_shape_whatever_a_sample_holds() -> None:
    text = table([{"prompt": "a|b\nc", "n": 0.123456, "deep": {}}, {"prompt": "x" * 300, "n": 1}])
    assert text.splitlines()[0] == "| prompt | n |"
    assert text.splitlines()[2] == "| a\\|b<br>c | 0.1235 |"
    assert len(text.splitlines()) == 4
    assert len(text.splitlines()[3]) < 230
