"""A run's folder: what a second start may do with it."""

from pathlib import Path

import pytest

from lodestar.config import RunConfig
from lodestar.errors import DataError, FailedPrecondition, ResumeRefused
from lodestar.layout import RunFolder
from lodestar.local.state import RunLog, digest, open_folder


def _config(root: Path, **changes: object) -> RunConfig:
    return RunConfig.model_validate({"name": "tiny", "runs_dir": str(root), **changes})


def test_a_held_folder_needs_resume_or_fresh(tmp_path: Path) -> None:
    folder = open_folder(_config(tmp_path), resume=False, fresh=False)
    assert folder.config.exists()
    with pytest.raises(FailedPrecondition, match="--resume goes on with it, --fresh starts over"):
        open_folder(_config(tmp_path), resume=False, fresh=False)


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="holds no run to resume"):
        open_folder(_config(tmp_path), resume=True, fresh=False)


def test_resume_refuses_a_changed_option_by_its_key_and_values(tmp_path: Path) -> None:
    open_folder(_config(tmp_path), resume=False, fresh=False)
    with pytest.raises(ResumeRefused, match=r"ppo\.steps \(was 40, is 41\)"):
        open_folder(_config(tmp_path, ppo={"steps": 41}), resume=True, fresh=False)


def test_resume_accepts_a_change_of_where_the_run_happens(tmp_path: Path) -> None:
    open_folder(_config(tmp_path), resume=False, fresh=False)
    changed = _config(tmp_path, rollout={"replicas": 2}, queue={"url": "redis://localhost:6379"})
    assert "replicas: 2" in open_folder(changed, resume=True, fresh=False).config.read_text()


def test_fresh_removes_what_the_run_made_and_nothing_else(tmp_path: Path) -> None:
    folder = open_folder(_config(tmp_path), resume=False, fresh=False)
    folder.sft.mkdir(parents=True)
    folder.metrics.write_text("{}\n")
    (folder.served / "0").mkdir(parents=True)
    (folder.root / "notes.txt").write_text("mine")
    open_folder(_config(tmp_path), resume=False, fresh=True)
    assert not folder.sft.exists()
    assert not folder.metrics.exists()
    assert not folder.served.exists(), "a policy server would take the old run's weights for this one's"
    assert (folder.root / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("")
    with pytest.raises(FailedPrecondition, match="is not empty and not a run"):
        open_folder(_config(tmp_path), resume=False, fresh=True)


def test_finished_stages_seconds_and_results_survive_a_restart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    (folder.data / "rows.jsonl").write_text("1\n")
    log = RunLog(folder)
    log.spend("data", 1.5)
    log.finish("data", [folder.data])
    log.spend("ppo", 2.0)
    log.record("baseline", {"reward": 1.0})
    log.restarted("policy-0")
    again = RunLog(folder)
    again.spend("ppo", 3.0)
    again.check_outputs()
    assert again.finished == ["data"]
    assert again.seconds == {"data": 1.5, "ppo": 5.0}
    assert again.results == {"baseline": {"reward": 1.0}}
    assert again.restarts == {"policy-0": 1}


@pytest.mark.parametrize("change", ["edit", "rename", "remove"])
def test_resume_refuses_outputs_that_changed(tmp_path: Path, change: str) -> None:
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    rows = folder.data / "rows.jsonl"
    rows.write_text("1\n")
    RunLog(folder).finish("data", [folder.data])
    if change == "edit":
        rows.write_text("2\n")
    elif change == "rename":
        rows.rename(folder.data / "other.jsonl")
    else:
        rows.unlink()
    with pytest.raises(ResumeRefused, match="changed since stage data made it"):
        RunLog(folder).check_outputs()


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path).state.write_text("{")
    with pytest.raises(DataError, match=r"state\.json:1: is not JSON"):
        RunLog(RunFolder(tmp_path))


def test_the_digest_of_nothing_is_empty(tmp_path: Path) -> None:
    assert digest(tmp_path / "missing") == ""
