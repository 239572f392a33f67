"""The campaign of a stage: named by what it asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lodestar.errors import ConfigError, DataError, Unavailable
from lodestar.feedback import Item, PairVerdict
from lodestar.labelling import people
from lodestar.labelling.known import known_items
from lodestar.labelling.options import PeopleOptions
from lodestar.labelling.people import People, campaign_of
from lodestar.labelling.port import Asked, Question

QUESTIONS = [Question("0.0.0-0", "which ?", ("x", "y"))]
ITEMS = [Item("0.0.0-0", "which ?", ("x", "y"))]


def test_a_campaign_is_named_by_the_run_its_stage_and_all_that_is_asked() -> None:
    first = campaign_of("r.label", PeopleOptions(overlap=2), ITEMS)
    assert first.name.startswith("r.label.")
    assert (first.form, first.overlap) == ("pair", 2)
    elsewhere = campaign_of("r.label", PeopleOptions(overlap=2, address="there:1"), ITEMS)
    assert elsewhere == first, "where people are asked is not what they are asked"
    others = [
        campaign_of("r.r2.label", PeopleOptions(overlap=2), ITEMS),
        campaign_of("r.label", PeopleOptions(overlap=3), ITEMS),
        campaign_of("r.label", PeopleOptions(overlap=2, instructions="Be kind."), ITEMS),
        campaign_of("r.label", PeopleOptions(overlap=2), [Item("0.0.0-0", "which ?", ("x", "z"))]),
    ]
    assert len({campaign.name for campaign in [first, *others]}) == 5
    long = [campaign_of("r" * 52 + end, PeopleOptions(), ITEMS).name for end in (".r1.label", ".r2.label")]
    assert [len(name) for name in long] == [64, 64]
    assert long[0] != long[1]


def test_a_service_that_never_answers_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "FIRST_SECONDS", 0.0)
    said: list[str] = []
    options = PeopleOptions(address="127.0.0.1:1")
    with pytest.raises(
        Unavailable,
        match=r"127\.0\.0\.1:1 does not answer: start it and --resume, or mend people\.address and --from r2\.label",
    ):
        People(Asked(0, None, tmp_path, people=options, of="r.r2.label", say=said.append)).label(QUESTIONS, said.append)
    assert said == []


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    for options in ({"tls": "certs"}, {"form": "ranking", "gold": "gold.jsonl"}):
        with pytest.raises(ValidationError):
            PeopleOptions.model_validate(options)


def row(label: float, **more: object) -> str:
    return json.dumps({"prompt": "which ?", "completions": ["x", "y"], "label": label, **more}) + "\n"


def test_practice_and_gold_are_rows_whose_answer_is_known(tmp_path: Path) -> None:
    gold, practice = tmp_path / "gold.jsonl", tmp_path / "practice.jsonl"
    gold.write_text(row(1) + row(0.5))
    practice.write_text(row(0, flags=["The first is rude."]))
    options = PeopleOptions(gold=str(gold), practice=str(practice))
    found = known_items(options)
    assert [(one.role, one.expected) for one in found] == [
        ("practice", PairVerdict(label=0.0)),
        ("gold", PairVerdict(label=1.0)),
        ("gold", PairVerdict(label=0.5)),
    ]
    assert [one.explanation for one in found] == ["The first is rude.", "", ""]
    names = {
        campaign_of("r.label", PeopleOptions(), ITEMS).name,
        campaign_of("r.label", options, [*ITEMS, *found]).name,
    }
    gold.write_text(row(0) + row(0.5))
    names.add(campaign_of("r.label", options, [*ITEMS, *known_items(options)]).name)
    assert len(names) == 3, "other answers to gold are another campaign"


@pytest.mark.parametrize(("text", "says"), [("", "has no rows"), (row(0.7), "row 1 is no comparison")])
def test_a_gold_answer_that_is_not_known_is_refused(tmp_path: Path, text: str, says: str) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text(text)
    with pytest.raises(DataError, match=says):
        known_items(PeopleOptions(gold=str(gold)))


def test_a_token_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    options = PeopleOptions(address="there:1", tls=str(tmp_path), token_file=str(tmp_path / "token"))
    asked = Asked(0, None, tmp_path, people=options)
    with pytest.raises(ConfigError, match=r"people\.token_file: cannot be read"):
        People(asked).label(QUESTIONS, lambda _: None)
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match=r"people\.token_file: .*token is empty"):
        People(asked).label(QUESTIONS, lambda _: None)
