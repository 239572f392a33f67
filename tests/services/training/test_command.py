"""`lodestar serve training MODEL` and `lodestar serve gateway --training …` as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lodestar.client import TrainingClient
from lodestar.local.ports import free_ports
from lodestar.records import Datum

pytestmark = pytest.mark.slow
LODESTAR = [sys.executable, "-c", "from lodestar.cli import main; main()"]


def test_the_commands_serve_and_drain(tiny_start: Path, tmp_path: Path) -> None:
    port, metrics_port, http_port = free_ports(3)
    options = [f"weights={tmp_path / 'weights'}", "kv_cache_tokens=1024"]
    where = ["--port", str(port), "--metrics-port", str(metrics_port)]
    server = subprocess.Popen([*LODESTAR, "serve", "training", str(tiny_start), *options, *where])
    gateway = ["serve", "gateway", "--training", f"127.0.0.1:{port}", "name=tiny", "--http-port", str(http_port)]
    door = subprocess.Popen([*LODESTAR, *gateway], env={**os.environ, "LODESTAR_LOG": "WARNING"})
    try:
        with TrainingClient(f"127.0.0.1:{port}", timeout=5) as training:
            deadline = time.monotonic() + 150
            while True:
                try:
                    name = training.create_model("mine").model.name
                    break
                except Exception:
                    assert time.monotonic() < deadline
                    assert server.poll() is None
                    time.sleep(0.5)
            training.forward_backward(name, [Datum((4, 5), (5, 6))], "cross_entropy")
            training.optim_step(name, 0.01)
            assert training.save_weights(name, "one") == "mine/weights/one"
        assert (tmp_path / "weights/mine/weights/one/state.json").exists()
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
            assert "lodestar_training_steps_total 1.0" in answer.read().decode()
        address = f"http://127.0.0.1:{http_port}/api/v1/get_server_capabilities"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert json.load(answer)["supported_models"][0]["model_name"] == "tiny"
    finally:
        for process in (server, door):
            process.send_signal(signal.SIGTERM)
    assert [server.wait(60), door.wait(60)] == [0, 0]
