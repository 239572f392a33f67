"""Checkpoints: whole or absent, exact, and refused when what they were made from has changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from lodestar_services.learner.checkpoint import Checkpoints, load_checkpoint, refuse_changes

from lodestar.errors import LodestarError, ResumeRefused

STATE = {
    "step": 7,
    "trainer": {
        "weights": {"a/b": torch.randn(3, 4), "rng": torch.get_rng_state()},
        "moments": [torch.zeros(2), {"step": 3, "eps": 1e-5}],
        "nothing": None,
        "rate": 0.1 + 0.2,
    },
}


def test_a_state_comes_back_bit_for_bit(tmp_path):
    loaded = load_checkpoint(Checkpoints(tmp_path, keep=2).save(7, STATE))
    assert torch.equal(loaded["trainer"]["weights"]["a/b"], STATE["trainer"]["weights"]["a/b"])
    assert torch.equal(loaded["trainer"]["weights"]["rng"], STATE["trainer"]["weights"]["rng"])
    assert loaded["trainer"]["rate"] == 0.1 + 0.2
    assert loaded["trainer"]["moments"][1] == {"step": 3, "eps": 1e-5}
    assert loaded["trainer"]["nothing"] is None


def test_views_of_one_storage_are_saved_as_their_own_tensors(tmp_path):
    whole = torch.arange(10.0)
    loaded = load_checkpoint(Checkpoints(tmp_path, keep=1).save(0, {"whole": whole, "part": whole[3:5]}))
    assert loaded["part"].tolist() == [3.0, 4.0]


def test_only_the_newest_are_kept_and_a_half_written_one_is_not_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, STATE)
    (tmp_path / ".step-000020.1f00ba42.partial").mkdir()
    assert [path.name for path in checkpoints.all()] == ["step-000010", "step-000015"]
    assert checkpoints.latest() == tmp_path / "step-000015"


def test_what_killed_starts_left_half_done_is_removed_and_never_taken_for_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for name in (".step-000020.1f00ba42.partial", ".step-000001.1f00ba42.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{")
    (tmp_path / "step-000009.copy").mkdir()  # a person's
    checkpoints.save(5, STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000009.copy"]
    assert checkpoints.latest() == tmp_path / "step-000005"


def test_the_newest_is_told_by_number(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_999, 1_000_000):
        checkpoints.save(step, STATE)
    assert checkpoints.latest() == tmp_path / "step-1000000"


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, STATE)
    checkpoints.save(5, STATE | {"step": 8})
    assert load_checkpoint(tmp_path / "step-000005")["step"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_older_checkpoint_intact_and_says_so(small_disk: Path):
    checkpoints = Checkpoints(small_disk, keep=2)
    checkpoints.save(1, STATE)
    with pytest.raises(LodestarError, match=r"step 2 could not be written.*step-000001 is intact. Free space"):
        checkpoints.save(2, {"big": torch.randn(1_000_000)})
    assert load_checkpoint(small_disk / "step-000001")["step"] == 7
    assert [path.name for path in small_disk.iterdir()] == ["step-000001"]


def test_every_change_since_the_checkpoint_is_named():
    saved = {"config ppo.clip": "0.2", "data": "a" * 64, "reward model": "b" * 64}
    refuse_changes(saved, dict(saved))
    with pytest.raises(ResumeRefused, match=r"config ppo.clip \(0.2 → 0.3\), reward model \(b{12}… → c{12}…\)"):
        refuse_changes(saved, saved | {"config ppo.clip": "0.3", "reward model": "c" * 64})
    with pytest.raises(ResumeRefused, match=r"config ppo.new \(unset → 1\)"):
        refuse_changes(saved, saved | {"config ppo.new": "1"})


def damage(path: Path, how: str) -> None:
    """What disks and people do to a file."""
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": bytes(content[: len(content) // 2]), "empty": b"", "flipped": bytes(content)}[how])


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "digests.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, STATE | {"step": 5})
    damage(checkpoints.save(10, STATE | {"step": 10}) / name, how)
    found = checkpoints.load_newest()
    assert found is not None
    assert (found[0].name, found[1]["step"]) == ("step-000005", 5)
    (aside,) = tmp_path.glob("damaged-step-000010-*")
    assert str(aside) in caplog.text
    assert "step-000010" in caplog.text
    assert checkpoints.latest() == tmp_path / "step-000005"
    checkpoints.save(10, STATE | {"step": 10})
    assert aside.exists()


def test_when_every_checkpoint_is_damaged_each_is_named(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10):
        damage(checkpoints.save(step, STATE) / "state.json", "cut")
    with pytest.raises(ResumeRefused, match=r"(?s)no checkpoint.*step-000010/state.json is damaged.*step-000005"):
        checkpoints.load_newest()


def test_what_a_killed_start_left_is_swept_before_anything_is_read(tmp_path: Path):
    (tmp_path / ".step-000003.1f00ba42.partial").mkdir()
    (tmp_path / ".step-000002.1f00ba43.partial").mkdir()
    assert Checkpoints(tmp_path, keep=2).load_newest() is None
    assert list(tmp_path.iterdir()) == []
