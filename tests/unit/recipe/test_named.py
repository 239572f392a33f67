"""One rule for what may be named where a run or a model is wanted."""

import json
from pathlib import Path

import pytest

from lodestar.config import RunConfig, dump
from lodestar.errors import ConfigError, FailedPrecondition, ModelError
from lodestar.recipe import named


def a_run(folder: Path, *, made: bool = True) -> Path:
    """A run below ``folder`` with a policy of a finished sft stage, as far as names go."""
    root = folder / "mine"
    run = RunConfig.model_validate({"name": "mine", "runs_dir": "elsewhere", "recipe": "instruct-gpt"})
    (root / "sft" / "policy").mkdir(parents=True)
    (root / "config.yaml").write_text(dump(run))
    if made:
        (root / "sft" / "seal.json").write_text(json.dumps({"format": 1, "made": {"policy": "x"}}))
    return root


def test_a_run_is_named_by_its_folder_or_its_yaml(tmp_path: Path) -> None:
    root = a_run(tmp_path)
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(f"name: mine\nruns_dir: {tmp_path}\n")
    by_folder, by_yaml = named.run_config(root, ["ppo.steps=7"]), named.run_config(yaml)
    assert (by_folder.name, by_folder.runs_dir) == ("mine", str(tmp_path)), "where the folder lies, not where it was"
    assert by_folder.stages["ppo"]["steps"] == 7
    assert (by_yaml.name, by_yaml.runs_dir) == ("mine", str(tmp_path))
    assert named.run_folder(yaml).root == named.run_folder(root).root == root


def test_a_model_is_a_runs_newest_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    root = a_run(tmp_path)
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(f"name: mine\nruns_dir: {tmp_path}\n")
    policy = str(root / "sft" / "policy")
    assert [named.model(str(what)) for what in (root, yaml, root / "sft" / "policy")] == [policy] * 3
    assert named.model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert named.model("gpt2") == "gpt2"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("typo", "no such folder; name a run's folder, a run's YAML, a model's folder or a hub id"),
        ("mine/sft", "is the folder of a run or of its stage; name the model in it"),
        ("no.yaml", "no such folder"),
    ],
)
def test_what_names_no_model_is_said_with_what_does(tmp_path: Path, what: str, said: str) -> None:
    a_run(tmp_path)
    with pytest.raises(ModelError, match=said):
        named.model(str(tmp_path / what))


def test_a_run_without_a_model_says_the_command_that_goes_on(tmp_path: Path) -> None:
    root = a_run(tmp_path, made=False)
    with pytest.raises(ModelError, match=f"no model yet: lodestar run {root} --resume goes on"):
        named.model(str(root))


def test_what_names_no_run_is_said_with_what_does(tmp_path: Path) -> None:
    root = a_run(tmp_path)
    yaml = tmp_path / "new.yaml"
    yaml.write_text(f"name: new\nruns_dir: {tmp_path}\n")
    with pytest.raises(FailedPrecondition, match=f"holds no run: lodestar run {yaml} starts it"):
        named.run_folder(yaml)
    with pytest.raises(ConfigError, match=r"is no run's folder, which has a config\.yaml"):
        named.run_config(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        named.run_config(tmp_path / "nowhere.yaml")
    with pytest.raises(FailedPrecondition, match="a run's folder has its name"):
        named.run_config(root.rename(tmp_path / "other"))
