"""A stage's progress travels through a file."""

import json
from pathlib import Path

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
