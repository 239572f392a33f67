"""Models that would end a run, and a Redis that cannot hold its queue, end it before its first stage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lodestar.config import RunConfig
from lodestar.crew.before import asked, looked_at, refuse_queue
from lodestar.errors import ConfigError
from lodestar.model.loading import save_model
from lodestar.recipe.plan import plan
from tests.services.queue.servers import Server, program
from tests.unit.model import zoo
from tests.unit.model.worlds import VOCAB, word_tokenizer

STAGES: Mapping[str, Any] = {
    "data": {"max_prompt_tokens": 16, "evaluation_rows": 8, "prompt_rows": 8},
    "sft": {},
    "reward": {},
    "ppo": {"steps": 1, "batch": 4, "max_tokens": 16},
}


def model(path: Path) -> Path:
    """One of 64 tokens' context."""
    save_model(zoo.tiny_model(zoo.tiny_config("llama", vocab_size=VOCAB)), word_tokenizer(), path)
    return path


def written(folder: Path, **more: Any) -> Path:
    path = folder / "run.yaml"
    tree = {"name": "mine", "runs_dir": str(folder / "runs"), "stages": dict(STAGES), **more}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def lodestar_(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lodestar", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "150", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_the_check_says_what_models_will_do(tmp_path: Path) -> None:
    done = lodestar_("config", "check", written(tmp_path, model={"path": str(model(tmp_path / "m"))}))
    assert done.returncode == 0, done.stderr
    for said in ("LlamaForCausalLM", "64 tokens, the run asks for 32", "LlamaForSequenceClassification", "fine"):
        assert said in done.stdout, said


def test_a_model_that_will_not_do_is_refused_by_check_and_by_run_which_leaves_nothing(tmp_path: Path) -> None:
    config = written(tmp_path, model={"path": str(model(tmp_path / "m"))})
    checked = lodestar_("config", "check", config, "ppo.max_tokens=60")
    assert checked.returncode == 2
    assert "✗ 64 tokens, and the run asks for 76" in checked.stdout
    sentence = "error: the run would end at its models: policy, context: 64 tokens, and the run asks for 76"
    assert sentence in checked.stderr
    ran = lodestar_("run", config, "ppo.max_tokens=60", "--plain")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert sentence in ran.stderr
    assert not (tmp_path / "runs").exists()


def test_reward_models_that_are_there_are_looked_at_too(tmp_path: Path) -> None:
    sources = [{"name": "theirs", "paths": [str(model(tmp_path / "m"))]}]
    run = RunConfig(name="mine", stages={**STAGES, "reward": None}, services={"reward": {"sources": sources}})
    arguments = asked(run, plan(run))
    assert arguments is not None
    assert (arguments["policy"], arguments["scorers"]) == (None, {"theirs": str(tmp_path / "m")})
    found = looked_at(run, plan(run))
    assert found is not None
    assert {one.model for one in found.findings} == {"theirs"}


def test_models_that_are_made_or_fetched_are_not_asked_for() -> None:
    for path in (None, "Qwen/Qwen2.5-0.5B-Instruct"):
        run = RunConfig(name="mine", model={"path": path}, stages=dict(STAGES))
        assert asked(run, plan(run)) is None


def test_a_redis_that_refuses_the_run_ends_it_before_its_first_stage(tmp_path: Path) -> None:
    with Server(program("valkey-9"), tmp_path / "server").running() as server:
        config = written(tmp_path, services={"queue": {"url": server.url}})
        ran = lodestar_("run", config, "--plain", LODESTAR_REDIS_PASSWORD="wrong")
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "refuses us" in ran.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("until", "asks"), [("sft", False), ("ppo", True)])
def test_only_stages_that_roll_out_need_a_redis(until: str, asks: bool, tmp_path: Path) -> None:
    queue = {"url": "redis://localhost", "password_file": str(tmp_path / "none")}
    run = RunConfig(name="mine", stages=dict(STAGES), services={"queue": queue})
    steps = [step for step in plan(run).steps if step.name == until]
    if asks:
        with pytest.raises(ConfigError, match="password_file"):
            refuse_queue(run, steps)
    else:
        refuse_queue(run, steps)
