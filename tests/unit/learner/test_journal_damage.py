"""A journal that lost or changed what its checkpoint counts on is named by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from lodestar_services.learner.journal import JsonLines

from lodestar.errors import ResumeRefused


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, int]:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.append({"step": step, "text": "a\u2028b"} for step in range(3))
    offset = lines.sync()
    lines.append([{"step": 3}])
    lines.close()
    return path, offset


def test_what_follows_the_checkpoint_is_cut_off(written: tuple[Path, int]) -> None:
    path, offset = written
    JsonLines(path, offset).close()
    assert path.stat().st_size == offset


@pytest.mark.parametrize("broken", [b"\xff", b"[", b"\n"])
def test_a_damaged_line_is_named(written: tuple[Path, int], broken: bytes) -> None:
    path, offset = written
    content = bytearray(path.read_bytes())
    place = content.index(b'"step": 1') - 1
    content[place : place + 1] = broken
    path.write_bytes(content)
    with pytest.raises(ResumeRefused, match=r"metrics\.jsonl:2 is damaged"):
        JsonLines(path, offset)


def test_an_offset_amid_a_line_is_damage_too(written: tuple[Path, int]) -> None:
    path, offset = written
    with pytest.raises(ResumeRefused, match=r"metrics\.jsonl:3 is damaged"):
        JsonLines(path, offset - 4)
