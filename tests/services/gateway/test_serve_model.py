"""``lodestar serve MODEL`` as a person starts it: both doors of one model, over a death of its policy server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from lodestar.client import PolicyClient

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@pytest.fixture
def serving(tiny_chat: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    log = tmp_path / "log"
    command = [
        BIN / "lodestar",
        "serve",
        str(tiny_chat),
        "max_sequences=8",
        "gateway.max_prompts=2",
        "--http-port",
        "0",
    ]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            deadline = time.monotonic() + 150
            while not (at := re.search(r"OpenAI's API at (http://\S+)", log.read_text().partition("gRPC at")[2])):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            grpc = re.search(r"gRPC at (\S+)", log.read_text())
            assert grpc is not None
            yield process, at[1], grpc[1]
        finally:
            process.kill()


def answered(client: openai.OpenAI, asked: dict[str, Any]) -> str:
    """The text, or the status of a refusal."""
    try:
        return client.completions.create(**asked).choices[0].text
    except openai.APIStatusError as error:
        return str(error.status_code)


def test_one_command_opens_both_doors_and_outlives_its_policy_server(
    serving: tuple[subprocess.Popen[bytes], str, str],
) -> None:
    process, url, address = serving
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        (model,) = client.models.list().data
        assert model.id == "model"  # the folder's name
        asked: dict[str, Any] = {"model": model.id, "prompt": "the sky is", "max_tokens": 8, "seed": 1}
        text = client.completions.create(**asked).choices[0].text
        with PolicyClient(address) as grpc:
            assert grpc.generate("the sky is", max_tokens=8, seed=1).completions[0].text == text
        with pytest.raises(openai.BadRequestError, match="at most 2"):
            client.completions.create(**{**asked, "prompt": ["a", "b", "c"]})
        children = psutil.Process(process.pid).children(recursive=True)
        deepest = max(children, key=lambda one: len(one.parents()))
        deepest.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 120
        while (again := answered(client, asked)) != text:
            assert again == "503"
            assert time.monotonic() < deadline
            time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_what_is_neither_a_role_nor_a_model_is_said(tmp_path: Path) -> None:
    done = subprocess.run([BIN / "lodestar", "serve", "polcy", "x=1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no role (policy, reference, reward, gateway, task), and no run or model folder is there" in done.stderr
    done = subprocess.run([BIN / "lodestar", "serve", "policy"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lodestar serve policy runs/demo" in done.stderr
