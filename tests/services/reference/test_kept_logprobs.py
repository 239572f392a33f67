"""Log-probs of completions asked of a running reference server: once each, kept by digest, never of other tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lodestar.client import ReferenceClient
from lodestar.errors import DataError, FailedPrecondition
from lodestar.records import Scored
from lodestar.train.progress import Silent
from lodestar.train.reference import ReferenceLogProbs, row_digest

ROWS = [Scored((1, 5, 8, 9, 2), 2), Scored((1, 4, 4), 1), Scored((1, 5, 8, 9, 2), 3), Scored((1, 4, 4), 1)]


class Counted(Silent):
    """Rows that were done."""

    def __init__(self) -> None:
        self.rows = 0

    def advance(self, amount: int = 1) -> None:
        self.rows += amount


@pytest.fixture
def hash_(reference_service: Any) -> str:
    with ReferenceClient(reference_service.address) as client:
        return client.describe().model.tokenizer_hash


def kept(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_different_row_is_asked_once_and_never_again(reference_service: Any, hash_: str, tmp_path: Path) -> None:
    reference = ReferenceLogProbs([reference_service.address], tmp_path)
    found = reference.of(ROWS, hash_, heard := Counted())
    with ReferenceClient(reference_service.address) as client:
        expected = [sum(one.logprobs) for one in client.logprobs(ROWS).sequences]
        digest = client.describe().model.version.digest
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] != found[2], "another prompt length is another row"
    assert heard.rows == len(kept(tmp_path)) == 3
    assert (tmp_path / f"{digest}.jsonl").exists()
    more = [*ROWS, Scored((1, 7, 7), 1)]
    assert reference.of(more, hash_, Silent())[:4] == found, "bit for bit what was kept"
    assert [row["row"] for row in kept(tmp_path)][3:] == [row_digest(more[-1])]


def test_a_file_that_a_killed_stage_began_to_write_is_gone_on_with(
    reference_service: Any, hash_: str, tmp_path: Path
) -> None:
    reference = ReferenceLogProbs([reference_service.address], tmp_path, call_tokens=5)
    found = reference.of(ROWS, hash_, Silent())
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 7])
    assert reference.of(ROWS, hash_, Silent()) == pytest.approx(found, abs=1e-6)
    assert len(kept(tmp_path)) == 3
    path.write_text('{"row": 3}\n')
    with pytest.raises(DataError, match=r"jsonl:1: is no kept log-prob; delete the file"):
        reference.of(ROWS, hash_, Silent())


def test_sequences_computed_alone_are_kept_apart(reference_service: Any, hash_: str, tmp_path: Path) -> None:
    for alone in (False, True):
        ReferenceLogProbs([reference_service.address], tmp_path, alone=alone).of(ROWS, hash_, Silent())
    assert sorted(path.stem.partition("-")[2] for path in tmp_path.glob("*.jsonl")) == ["", "alone"]


def test_a_reference_of_another_tokenizer_is_refused(reference_service: Any, tmp_path: Path) -> None:
    reference = ReferenceLogProbs([reference_service.address], tmp_path)
    with pytest.raises(FailedPrecondition, match=r"reference: .*sft has another tokenizer \(.*\) than the policy"):
        reference.of(ROWS, "0" * 64, Silent())
    assert not list(tmp_path.iterdir())


def test_a_reference_of_a_shorter_context_is_refused(reference_service: Any, hash_: str, tmp_path: Path) -> None:
    long = Scored((1, *[5] * 80), 1)
    reference = ReferenceLogProbs([reference_service.address], tmp_path)
    with pytest.raises(FailedPrecondition, match=r"holds 64 tokens, and the longest row has 81; leave longer rows out"):
        reference.of([*ROWS, long], hash_, Silent())
