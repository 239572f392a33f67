from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lodestar_services.learner.journal import JsonLines

from lodestar.errors import ResumeRefused
from lodestar.records import LedgerEntry, Outcome
from lodestar.rollouts.ledger import read_ledger, verify_ledger


def entry(step: int, index: int, attempt: int = 0, outcome: Outcome = "trained", incarnation: str = "a") -> LedgerEntry:
    return LedgerEntry(incarnation, step, f"{step}.{index}.{attempt}", "" if outcome == "failed" else "beef", outcome)


def write(path: Path, *entries: LedgerEntry) -> Path:
    ledger = JsonLines(path)
    ledger.append(entries)
    ledger.close()
    return path


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    entries = [entry(0, 0), entry(0, 1, outcome="failed"), entry(0, 1, 1)]
    path = write(tmp_path / "ledger.jsonl", *entries)
    assert read_ledger(path) == entries
    assert verify_ledger(path, tickets=2, steps=1) == []


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = JsonLines(path)
    ledger.append([entry(0, 0)])
    offset = ledger.sync()
    ledger.append([entry(1, 0)])
    ledger.close()
    with path.open("ab") as torn:
        torn.write(b'{"incarnation": "a", "st')
    resumed = JsonLines(path, offset)
    resumed.append([entry(1, 0, incarnation="b")])
    resumed.close()
    assert [(e.step, e.incarnation) for e in read_ledger(path)] == [(0, "a"), (1, "b")]
    assert verify_ledger(path, tickets=1, steps=2) == []


def test_a_ledger_shorter_than_the_checkpoint_says_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger.jsonl", entry(0, 0))
    with pytest.raises(ResumeRefused, match=r"ledger\.jsonl has \d+ bytes, but the checkpoint"):
        JsonLines(path, 10_000)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([entry(0, 0), entry(0, 0), entry(0, 1)], "0.0.0 ended 2 times"),
        ([entry(0, 0)], "0.1.0 is missing"),
        ([entry(0, 0), entry(0, 1), entry(0, 2)], "0.2 is one too many"),
        ([entry(0, 0), entry(0, 1, 1)], "0.1: attempts [1] have a gap"),
        ([entry(0, 0), entry(0, 1, outcome="failed")], "0.1: used attempts are [], of [0]"),
        ([entry(0, 0), entry(0, 1), entry(0, 1, 1)], "0.1: used attempts are [0, 1]"),
        ([entry(0, 0), entry(0, 1, incarnation="b")], "step 0 mixes incarnations ['a', 'b']"),
        ([entry(1, 0), entry(1, 1)], "step 0 is missing"),
        ([entry(s, i) for s in (1, 0) for i in (0, 1)], "steps are out of order"),
        ([LedgerEntry("a", 0, "0.0.0", "", "trained"), entry(0, 1)], "0.0.0 is trained without tokens"),
        ([LedgerEntry("a", 3, "0.0.0", "beef", "trained"), entry(0, 1)], "0.0.0 is written under step 3"),
    ],
)
def test_every_way_to_break_exactly_once_is_named(tmp_path: Path, entries: list[LedgerEntry], problem: str) -> None:
    problems = verify_ledger(write(tmp_path / "ledger.jsonl", *entries), tickets=2)
    assert any(problem in sentence for sentence in problems), problems


def test_missing_and_surplus_steps_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger.jsonl", entry(0, 0), entry(1, 0))
    assert verify_ledger(path, steps=3) == ["step 2 is missing"]
    assert verify_ledger(path, steps=1) == ["step 1 is one too many"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"incarnation": "a"}\n', "not a line of a ledger"),
        (b"[]\n", "must be an object"),
        (b'{"x"\n', "is not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = write(tmp_path / "ledger.jsonl", entry(0, 0))
    with path.open("ab") as file:
        file.write(line)
    (problem,) = verify_ledger(path)
    assert f"ledger.jsonl:2: {sentence}" in problem


def test_a_line_cut_off_at_its_end_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger.jsonl", entry(0, 0))
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut off" in verify_ledger(path)[0]
    assert "no such file" in verify_ledger(tmp_path / "other")[0]


def _check(run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lodestar.cli import main; main()", "ledger", "check", str(run)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_counts_outcomes_and_names_the_first_id_that_is_not_there_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\nrecipe: instruct-gpt\nstages: {ppo: {batch: 2}}\n")
    whole = [entry(0, 0), entry(0, 1, outcome="failed"), entry(0, 1, 1)]
    path = write(tmp_path / "ppo" / "unfinished" / "figures" / "ledger.jsonl", *whole)
    done = _check(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ppo: 3 tickets, each ended once: 1 failed, 2 trained\n"
    for entries, problem in (
        ([*whole, whole[0]], "0.0.0 ended 2 times; and 1 more like it"),
        (whole[:1], "0.1.0 is missing"),
        ([*whole, entry(2, 0), entry(2, 1)], "step 1 is missing; and 1 more like it"),
    ):
        write(path, *entries)
        done = _check(tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"error: {path}: {problem}\n"
    path.unlink()
    assert _check(tmp_path).stderr == f"error: {tmp_path}: has no ledger yet: no stage has issued tickets\n"
