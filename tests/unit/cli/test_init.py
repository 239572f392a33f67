"""``lodestar init`` writes a YAML that can be run, for what a folder has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.cli.init import init
from lodestar.config import load_config
from lodestar.errors import ConfigError, DataError
from lodestar.local.tiny import write_tiny_models
from lodestar.recipe.found import look
from lodestar.recipe.plan import plan

PREFERENCES = [{"prompt": f"t{i} t5", "chosen": "t7", "rejected": "t8"} for i in range(3, 60)]
SHOWN = [{"prompt": f"t{i} t6", "completion": "t7"} for i in range(3, 20)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: str, *found: dict[str, Any]) -> None:
    Path(path).parent.mkdir(exist_ok=True, parents=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in found))


def made(name: str = "mine") -> Any:
    init(Path("."), Path("run.yaml"), name=name, force=False)
    run = load_config(Path("run.yaml"))
    return run, plan(run), Path("run.yaml").read_text()


def test_preferences_alone_make_a_whole_pipeline_from_nothing() -> None:
    rows("votes/votes.jsonl", *PREFERENCES)
    run, planned, text = made()
    assert [step.name for step in planned.steps] == ["data", "sft", "reward", "filtered", "ppo", "evaluate", "report"]
    assert run.stages["data"]["root"] == "votes"
    assert run.stages["ppo"]["batch"] == 4, "no more than there are prompts"
    assert "# none was found: a small Llama from nothing" in text
    assert "fine-tuned on the preferred completions" in text


def test_a_model_its_context_demonstrations_and_prompts_are_used() -> None:
    write_tiny_models(Path("models"))
    config = json.loads(Path("models/policy/config.json").read_text())
    Path("models/policy/config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    for place in ("models/reward", "models/prompts"):
        Path(place).rename(Path("runs") if place.endswith("prompts") else Path(".hidden"))
    rows("mine/votes.jsonl", *PREFERENCES)
    rows("mine/shown.jsonl", *SHOWN)
    rows("mine/asked.jsonl", *({"prompt": f"t{i} t9"} for i in range(3, 60)))
    rows("mine/zzz.jsonl", {"zzz": 1})
    run, _, text = made()
    data = run.stages["data"]
    assert run.model.path == "models/policy"
    assert (data["files"], data["demonstrations"], data["prompts"]) == (["votes.jsonl"], "shown.jsonl", "asked.jsonl")
    assert data["max_prompt_tokens"] + run.stages["ppo"]["max_tokens"] == 64
    assert "LlamaForCausalLM" in text
    assert "sft: {}" in text
    assert [path.name for path, _ in look(Path(".")).refused] == ["zzz.jsonl"]


def test_a_reward_model_is_taken_for_the_reward() -> None:
    write_tiny_models(Path("models"))
    Path("models/prompts/ppo.jsonl").unlink()
    rows("mine/votes.jsonl", *PREFERENCES)
    run, planned, _ = made()
    assert run.stages["reward"] is None
    assert [source.paths for source in run.services.reward.sources] == [("models/reward",)]
    assert "reward" not in [step.name for step in planned.steps]


def test_demonstrations_alone_are_fine_tuning() -> None:
    rows("mine/shown.jsonl", *SHOWN)
    _, planned, text = made()
    assert [step.name for step in planned.steps] == ["data", "sft", "report"]
    assert "Without preferences this is fine-tuning alone" in text


def test_a_folder_without_rows_and_a_file_that_is_there_are_refused() -> None:
    with pytest.raises(DataError, match="holds no rows that can be read: name a folder with rows of"):
        made()
    Path("run.yaml").touch()
    with pytest.raises(ConfigError, match="is there already; --output names another file"):
        made()


def test_the_command_says_what_comes_next() -> None:
    rows("mine/votes.jsonl", *PREFERENCES)
    done = CliRunner().invoke(app, ["init", "mine", "-o", "other.yaml"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "lodestar config check other.yaml" in done.stdout
    assert load_config(Path("other.yaml")).name == "mine"
