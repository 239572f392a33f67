"""The README's commands as they are written: those that are quick are run, and every other one is parsed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from lodestar.cli.app import app
from lodestar.config import RunConfig
from lodestar.crew.fleet import serving
from lodestar.crew.inline import run_inline
from lodestar.local.ports import free_ports
from lodestar.local.tiny import write_tiny_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
QUICK = ("config check", "data check", "data split", "rank", "certs dev", "card docs/cards")
"""How the commands begin that are run here."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.S | re.M)


def commands() -> list[str]:
    """Every ``lodestar`` command of the README: of its console blocks, and those between single back-quotes."""
    shown = [line for block in blocks("console") for line in block.splitlines()]
    lines = [line.removeprefix("$ ").partition("  #")[0].strip() for line in shown]
    lines += re.findall(r"(?<!`)`(lodestar [^`]+)`(?!`)", re.sub(r"^```.*?^```", "", README, flags=re.S | re.M))
    return [line for line in dict.fromkeys(lines) if line.startswith("lodestar ")]


def quick() -> list[str]:
    return [line for line in commands() if line.removeprefix("lodestar ").startswith(QUICK)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's commands and configurations name."""
    write_tiny_models(tmp_path / "tiny")
    for model in ("my-sft-model", "reward-model"):
        shutil.copytree(tmp_path / "tiny" / ("reward" if model == "reward-model" else "policy"), tmp_path / model)
    (tmp_path / "preferences").mkdir()
    rows = [{"prompt": f"t{i} t{3 + i % 5}", "chosen": "t7 t8", "rejected": "t9"} for i in range(3, 60)] * 12
    text = "".join(json.dumps({**row, "prompt": f"{row['prompt']} t{i}"}) + "\n" for i, row in enumerate(rows))
    (tmp_path / "preferences" / "rows.jsonl").write_text(text)
    (tmp_path / "votes.jsonl").write_text(text)
    votes = ["a,b,1", "b,a,1", "b,c,1", "c,b,0.5", "a,c,1", "c,a,1"]
    (tmp_path / "votes.csv").write_text("first,second,label\n" + "\n".join(votes) + "\n")
    (tmp_path / "my_judge.py").write_text("def score(prompts, completions):\n    return [0.0] * len(prompts)\n")
    configurations = [block for block in blocks("yaml") if "preferences" in block]
    (tmp_path / "my-run.yaml").write_text(configurations[0])
    (tmp_path / "several-rewards.yaml").write_text(configurations[-1])
    shutil.copytree(ROOT / "docs" / "cards", tmp_path / "docs" / "cards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 20
    assert len(quick()) >= 5


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    """As far as its name, its options and its number of arguments go."""
    words = shlex.split(line.replace("…", "x"))[1:]
    command: Any = typer.main.get_command(app)
    with click.Context(command, info_name="lodestar") as context:
        while isinstance(command, click.Group) or hasattr(command, "commands"):
            assert words[0] in command.commands, f"there is no command {words[0]}"
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words, parent=context)


@pytest.mark.usefixtures("place")
@pytest.mark.timeout(180)
def test_the_quick_commands_do_what_they_say() -> None:
    for line in [*quick(), "lodestar config check several-rewards.yaml"]:
        done = subprocess.run([BIN / "lodestar", *shlex.split(line)[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout


def test_the_python_examples_are_python() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@contextmanager
def served(line: str) -> Iterator[None]:
    command = [BIN / "lodestar", *shlex.split(line)[1:]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)


@pytest.mark.timeout(240)
def test_the_first_client_example_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a small run of the demo's world, under the demo's name; the port alone is another."""
    monkeypatch.chdir(tmp_path)
    (port,) = free_ports(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "context_tokens": 96}
    data = {"demonstration_rows": 300, "comparison_rows": 300, "prompt_rows": 50, "evaluation_rows": 20}
    stages = {"data": data, "sft": {"max_seconds": 3.0}}
    run_inline(RunConfig.model_validate({"name": "demo", "model": {"architecture": shape}, "stages": stages}))
    (line,) = [line for line in commands() if line.startswith("lodestar serve policy")]
    assert "runs/demo" in line
    with served(line.replace("50051", str(port))):
        while not serving(f"127.0.0.1:{port}"):
            pass
        example = next(block for block in blocks("python") if "PolicyClient" in block)
        program = example.replace("50051", str(port))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
