"""What leaves a run: figures as tables, and its model on a hub with a card."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from typer.testing import CliRunner

import lodestar
from lodestar.cli.app import app
from lodestar.errors import ConfigError, DataError, FailedPrecondition, ModelError
from lodestar.files import read_jsonl
from lodestar.recipe.folder import RunFolder
from lodestar.report.model_card import model_card


def test_figures_are_a_data_frame_with_the_names_of_the_file(example_run: RunFolder) -> None:
    table = lodestar.figures(example_run.root)
    rows = read_jsonl(example_run.root / "ppo" / "figures" / "metrics.jsonl")
    assert table["stage"].unique().tolist() == ["ppo"]
    assert table["score"].tolist() == [row["score"] for row in rows]
    assert table["step"].tolist() == [row["step"] for row in rows]
    numbers = {name for name, value in rows[0].items() if isinstance(value, int | float)}
    assert numbers <= set(table.columns)
    assert lodestar.figures(example_run, "ppo").equals(table)
    with pytest.raises(DataError, match="sft has written no figures yet"):
        lodestar.figures(example_run, "sft")
    with pytest.raises(ConfigError, match="no such stage"):
        lodestar.figures(example_run, "pp")
    with pytest.raises(FailedPrecondition, match="not a run's folder"):
        lodestar.figures(example_run.root / "ppo")


def test_a_trainings_progress_is_figures_too(example_run: RunFolder) -> None:
    lines = [
        {"stage": "sft", "seconds": 1.0, "done": 0, "total": 8},
        {"stage": "sft", "seconds": 2.0, "done": 4, "total": 8, "loss": 1.5},
        {"stage": "sft", "seconds": 4.0, "done": 8, "total": 8, "loss": 1.25, "said": "done"},
    ]
    log = example_run.root / "logs" / "sft.jsonl"
    log.parent.mkdir()
    log.write_text("\n" + "\n".join(map(json.dumps, lines)) + '\n{"stage": "sf')
    table = lodestar.figures(example_run, "sft")
    assert table[["step", "loss"]].to_numpy().tolist() == [[4, 1.5], [8, 1.25]]
    assert table["time"].diff().tolist()[1] == pytest.approx(2.0)
    assert set(lodestar.figures(example_run)["stage"]) == {"sft", "ppo"}


def test_exported_tables_hold_what_the_frame_holds(example_run: RunFolder, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["export", str(example_run.root), "--output", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    paths = [Path(line) for line in answer.output.split()]
    assert [path.name for path in paths] == ["figures.csv", "figures.parquet"]
    table = lodestar.figures(example_run)
    pandas.testing.assert_frame_equal(pandas.read_csv(paths[0]), table, check_exact=False, check_dtype=False)
    pandas.testing.assert_frame_equal(pandas.read_parquet(paths[1]), table)
    one = CliRunner().invoke(app, ["export", str(example_run.root), "--stage", "ppo", "--format", "csv"])
    assert one.output.split() == [str(example_run.root / "export" / "figures.csv")]


def with_model(folder: RunFolder) -> Path:
    place = folder.store.path("ppo/policy")
    (place / "config.json").write_text('{"model_type": "llama"}')
    (place / "model.safetensors").write_bytes(b"\x00weights\xff" * 100)
    (place / "README.md").write_text("another's card")
    return place


def test_the_card_says_what_was_measured(example_run: RunFolder) -> None:
    card = model_card(example_run, "ppo/policy", repository="me/model", licence="apache-2.0")
    _, head, text = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "apache-2.0"
    assert metadata["pipeline_tag"] == "text-generation"
    assert {"lodestar", "rlhf", "ppo"} <= set(metadata["tags"])
    found = example_run.figures(example_run.last("evaluate"), "evaluation.json")
    assert f"Win rate {100 * found['win_rate']['value']:.1f}%" in text
    assert f"judge: {found['judge']}" in text
    accuracy = json.loads((example_run.store.path("reward/reward") / "card.json").read_text())["accuracy"]
    assert f"{100 * accuracy['value']:.1f}%" in text
    assert "steps: 40" in text
    assert "| ppo | ppo | 1 |" in text
    reward = model_card(example_run, "reward/reward", repository="me/judge", licence=None)
    assert "license" not in yaml.safe_load(reward.split("---\n")[1])
    assert "AutoModelForSequenceClassification" in reward


def test_a_dry_run_shows_the_files_and_sends_nothing(example_run: RunFolder) -> None:
    place = with_model(example_run)
    answer = CliRunner().invoke(app, ["push", str(example_run.root), "me/model", "--dry-run"])
    assert answer.exit_code == 0, answer.output
    assert str(place / "model.safetensors") in answer.output
    assert "lodestar/config.yaml" in answer.output
    assert "another's card" not in answer.output
    assert "# me/model" in answer.output


def test_a_model_that_is_not_there_is_named(example_run: RunFolder) -> None:
    with pytest.raises(
        ModelError, match="no model sft/polcy is finished; it has sft/policy, reward/reward, ppo/policy"
    ):
        CliRunner().invoke(
            app, ["push", str(example_run.root), "me/x", "--artifact", "sft/polcy", "--dry-run"], catch_exceptions=False
        )


class Hub(BaseHTTPRequestHandler):
    """The part of a hub's API that a commit needs; what it got is kept on the server."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        kept: Any = self.server
        if self.headers.get("authorization") != "Bearer hf_test":
            self.answer(401, {"error": "no"})
        elif self.path == "/api/repos/create":
            kept.created.append(json.loads(body))
            self.answer(200, {"url": f"{kept.endpoint}/me/model", "name": "me/model", "id": "1"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self.answer(200, {"files": modes})
        else:
            kept.commits.append([json.loads(line) for line in body.splitlines() if line])
            url = f"{kept.endpoint}/me/model/commit/abc"
            self.answer(200, {"success": True, "commitUrl": url, "commitOid": "abc", "hookOutput": ""})

    def do_GET(self) -> None:
        self.answer(404, {"error": self.path})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.commits = [], []
    server.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_push_is_one_commit_of_all_files(example_run: RunFolder, hub: Any, tmp_path: Path) -> None:
    place = with_model(example_run)
    program = "from lodestar.cli import main; main()"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "hf")}

    def pushed(**other: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "push", str(example_run.root), "me/model", "--private"],
            env={**environment, **other},
            capture_output=True,
            text=True,
            check=False,
        )

    done = pushed()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.endpoint}/me/model/commit/abc"
    (made,) = hub.created
    assert (made["name"], made["organization"], made["private"]) == ("model", "me", True)
    (commit,) = hub.commits
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in commit if one["key"] == "file"}
    assert files["model.safetensors"] == (place / "model.safetensors").read_bytes()
    assert files["README.md"].startswith(b"---\n")
    assert {"config.json", "lodestar/config.yaml", "lodestar/summary.json"} <= files.keys()
    refused = pushed(HF_TOKEN="hf_wrong")
    assert refused.returncode == 1
    assert "error: me/model: the hub did not take it" in refused.stderr
