"""The campaign of a stage: named by what it asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestar.errors import ConfigError, Unavailable
from lodestar.feedback import Item
from lodestar.labelling import people
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


def test_a_token_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    options = PeopleOptions(tls=str(tmp_path), token_file=str(tmp_path / "token"))
    asked = Asked(0, None, tmp_path, people=options)
    with pytest.raises(ConfigError, match=r"people\.token_file: cannot be read"):
        People(asked).label(QUESTIONS, lambda _: None)
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match=r"people\.token_file: .*token is empty"):
        People(asked).label(QUESTIONS, lambda _: None)
