"""A stage's progress travels through a file."""

import json
from pathlib import Path

from lodestar.local.board import Board, StageRow
from lodestar.local.progress import ProgressFile, ProgressReader


def test_a_reader_sees_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    reader = ProgressReader(path)
    assert list(reader.new()) == []
    with ProgressFile(path) as progress:
        progress.start("sft", 100)
        progress.advance(40)
        progress.say("judge at http://here")
        progress.metrics({"loss": 1.25})
    (first, *_, said, last) = reader.new()
    assert (first["stage"], first["done"], first["total"]) == ("sft", 0, 100)
    assert (said["done"], said["said"]) == (40, "judge at http://here")
    assert (last["done"], last["loss"]) == (40, 1.25)
    with path.open("a") as file:
        file.write('{"stage": "sft"')
        file.flush()
        assert list(reader.new()) == []
        file.write("}\n")
    assert [json.dumps(line) for line in reader.new()] == ['{"stage": "sft"}']


def test_what_a_stage_says_stands_on_the_board(tmp_path: Path) -> None:
    board = Board("mine", [StageRow("label")])
    with ProgressFile(tmp_path / "label.jsonl") as progress:
        progress.start("label", 40)
        progress.advance(10)
        progress.say("judge at http://here")
    board.progress("label", ProgressReader(tmp_path / "label.jsonl").new())
    assert [message.text for message in board.messages] == ["label: judge at http://here"]
    assert (board.stage("label").fraction, board.stage("label").detail) == (0.25, "judge at http://here")


def test_a_process_that_is_started_again_goes_on_in_the_file_wherever_the_one_before_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    reader = ProgressReader(path)
    with ProgressFile(path) as first:
        first.start("sft", 10)
        assert [line["total"] for line in reader.new()] == [10]
        first.metrics({"loss": 1.0})
    path.write_bytes(path.read_bytes()[:-9])
    assert list(reader.new()) == [], "a line that is not whole"
    with ProgressFile(path) as second:
        second.start("sft", 20)
        second.metrics({"loss": 0.5})
    assert [(line["total"], line.get("loss")) for line in reader.new()] == [(20, None), (20, 0.5)]


def test_a_stages_warning_is_a_warning_of_the_run(tmp_path: Path) -> None:
    board = Board("demo", [StageRow("data")])
    with ProgressFile(tmp_path / "data.jsonl") as progress:
        progress.start("data", 1)
        progress.warn("ppo: a step takes 64 prompts, and the data leave 50 at most")
    board.progress("data", ProgressReader(tmp_path / "data.jsonl").new())
    (message,) = board.messages
    assert (message.level, message.text.startswith("data: ppo: a step takes 64")) == ("warning", True)
