"""Judging over HTTP: every form, who is asked what, and what counts."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lodestar_services.feedback import assignment, export

from lodestar.data.feedback import read_feedback_file
from lodestar.data.files import BadRows, read_demonstrations, read_prompts
from lodestar.feedback import (
    Aspect,
    Campaign,
    Demonstrated,
    Item,
    PairVerdict,
    RankingVerdict,
    RatingVerdict,
    WrittenPrompt,
)
from lodestar.feedback.campaign import MARKS
from lodestar.records import Choice, Ranking, Ratings


def rows(page: Any, campaign: str, path: Path) -> Path:
    found = page.site.database.transact(export.export, campaign)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def no(**yes: str) -> dict[str, str]:
    return {f"mark__{name}": "no" for name in MARKS} | {f"mark__{name}": value for name, value in yes.items()}


# --- every form, whole -------------------------------------------------------------------------------------------
def test_pairs_are_judged_whatever_side_they_are_shown_on(
    page: Any, some_pairs: Any, tmp_path: Path, first_shown: Any
) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(8))
    ada = page.browser("ada")
    shown = []
    for _ in range(8):
        first = first_shown(ada.open("p").text)
        shown.append(first.startswith("good"))
        ada.send("p", choice="a2" if shown[-1] else "b2", note="clear", unsafe="yes" if len(shown) == 1 else "")
    assert len(set(shown)) == 2, "the order was shuffled"
    said = page.counted("p")
    assert all(one.verdict == PairVerdict(label=1.0, strength=2) for one in said)
    assert [one.shown == (0, 1) for one in said] == shown
    assert [one.unsafe for one in said] == [True] + [False] * 7
    found = [
        row.record for row in read_feedback_file(rows(page, "p", tmp_path / "p.jsonl"), None, BadRows(strict=True))
    ]
    assert {one.verdict for one in found} == {(Choice(0, 1, 1.0, 2.0),)}
    assert {one.annotator for one in found} == {"ada"}
    assert sum("unsafe" in one.flags for one in found) == 1


def test_ties_and_two_bad_replies_are_told_apart(lite: Any, some_pairs: Any, tmp_path: Path) -> None:
    lite.add(Campaign(name="p", form="pair", strength=False), some_pairs(2))
    ada = lite.browser("ada")
    for choice in ("tie", "bad"):
        ada.open("p")
        ada.send("p", choice=choice)
    found = [
        row.record for row in read_feedback_file(rows(lite, "p", tmp_path / "p.jsonl"), None, BadRows(strict=True))
    ]
    assert [one.verdict for one in found] == [(Choice(0, 1, 0.5, 0.0),)] * 2
    assert sorted(one.flags for one in found) == [(), ("both bad",)]


def test_the_rating_form_asks_output_by_output_and_goes_back(page: Any, tmp_path: Path, first_shown: Any) -> None:
    page.add(Campaign(name="r", form="rating", rank_after=True), [Item("1", "q", ("zero", "one", "two"))])
    ada = page.browser("ada")
    html = ada.open("r").text
    assert "Page 1 / 4" in html
    assert all(words.replace("'", "&#39;") in html for words in MARKS.values())
    places = []
    for number in range(3):
        text = ("zero", "one", "two")
        index = next(i for i in range(3) if f">{text[i]}</div>" in html)
        places.append(index)
        html = ada.send("r", overall=str(2 * index + 1), **no(harmful_advice="yes" if index == 2 else "no")).text
        assert f"Page {number + 2} / 4" in html
    html = ada.send("r", do="back").text
    assert "Page 3 / 4" in html
    assert ada.checked["overall"] == str(2 * places[2] + 1), "what was answered is still there"
    html = ada.send("r", overall=ada.checked["overall"], **no(harmful_advice=ada.checked["mark.harmful_advice"])).text
    assert "Page 4 / 4" in html
    ada.send("r", **{f"place.{i}": str(3 - index) for i, index in enumerate(places)})
    (said,) = page.counted("r")
    assert said.verdict == RatingVerdict(
        overall=(1, 3, 5),
        marks={"harmful_advice": (False, False, True)},
        ranking=RankingVerdict(order=((2,), (1,), (0,))),
    )
    found = (row.record for row in export_rows(page, "r"))
    rated, ranked = found
    assert rated.verdict == Ratings({"overall": (1.0, 3.0, 5.0)}, {"overall": (1.0, 7.0)})
    assert rated.flags == ("completion 2 harmful_advice",)
    assert ranked.verdict == Ranking(((2,), (1,), (0,)))


def export_rows(page: Any, campaign: str) -> list[Any]:
    from lodestar.data.schema import parse_feedback

    return [parse_feedback(row) for row in page.site.database.transact(export.export, campaign)]


def test_rankings_may_have_ties(lite: Any) -> None:
    lite.add(Campaign(name="k", form="ranking"), [Item("1", "q", ("r0", "r1", "r2", "r3"))])
    ada = lite.browser("ada")
    html = ada.open("k").text
    order = sorted(range(4), key=lambda i: html.index(f">r{i}</div>"))
    wanted = {2: "1", 0: "2", 3: "2", 1: "4"}
    ada.send("k", **{f"place__{place}": wanted[index] for place, index in enumerate(order)})
    (row,) = export_rows(lite, "k")
    assert row.record.verdict == Ranking(((2,), (0, 3), (1,)))


def test_each_aspect_is_asked_of_its_share_of_the_people_and_joined_per_person(lite: Any) -> None:
    aspects = (Aspect(name="helpful", question="?", share=2), Aspect(name="honest", question="?", high=7))
    lite.add(Campaign(name="a", form="aspects", aspects=aspects, overlap=2), [Item("1", "q", ("x", "y"))])
    asked = Counter()
    for name in ("ada", "bob", "eve"):
        browser = lite.browser(name)
        html = browser.open("a").text
        aspect = "helpful" if "Helpful, reply" in html else "honest"
        asked[aspect] += 1
        browser.send("a", rating__0="5", rating__1="1")
    assert asked == {"helpful": 2, "honest": 1}
    found = [row.record.verdict for row in export_rows(lite, "a")]
    assert Counter(tuple(one.aspects) for one in found) == {("helpful",): 2, ("honest",): 1}
    assert {scale for one in found for scale in one.scales.values()} == {(1.0, 5.0), (1.0, 7.0)}


def test_demonstrations_and_three_kinds_of_prompts_are_written(page: Any, tmp_path: Path) -> None:
    page.add(Campaign(name="d", form="demonstration"), [Item("1", "say hello")])
    items = [Item(style, "", style=style) for style in ("plain", "few_shot", "use_case")]
    page.add(Campaign(name="w", form="prompt", use_cases=("mail", "poem")), items)
    ada = page.browser("ada")
    ada.open("d")
    ada.send("d", completion="hello\r\n  you ")
    ada.open("w")
    ada.send("w", text="write a poem")
    ada.send("w", text="translate", query__0="cat", response__0="chat", query__1="dog", response__1="chien")
    ada.send("w", text="a mail to my mother", use_case="mail")
    (shown,) = read_demonstrations(rows(page, "d", tmp_path / "d.jsonl"))
    assert (shown.prompt, shown.completion) == ("say hello", "hello\n  you ")
    assert isinstance(page.counted("d")[0].verdict, Demonstrated)
    texts = [prompt.text for prompt in read_prompts(rows(page, "w", tmp_path / "w.jsonl"))]
    few = "translate\n\nQuery: cat\nResponse: chat\n\nQuery: dog\nResponse: chien"
    assert texts == ["write a poem", few, "a mail to my mother"]
    verdict = page.counted("w")[2].verdict
    assert isinstance(verdict, WrittenPrompt)
    assert verdict.use_case == "mail"


@pytest.mark.parametrize(
    ("form", "completions", "fields", "sentence"),
    [
        ("pair", ("x", "y"), {}, "Choose one of the answers."),
        ("pair", ("x", "y"), {"choice": "c9"}, "Choose one of the answers."),
        ("rating", ("x",), {"overall": "8", **no()}, "Give the overall quality a number, 1 to 7."),
        ("rating", ("x",), {"overall": "3"}, "Answer yes or no: Contains sexual content."),
        ("ranking", ("x", "y"), {"place__0": "1"}, "Give a place for reply B a number, 1 to 2."),
        ("ranking", ("x", "y"), {"place__0": "1", "place__1": "٢"}, "Give a place for reply B a number, 1 to 2."),
        ("aspects", ("x",), {"rating__0": "6"}, "Give reply A a number, 1 to 5."),
        ("demonstration", (), {"completion": " \n"}, "Write the reply."),
        ("prompt", (), {"text": ""}, "Write the prompt."),
    ],
)
def test_a_form_that_lacks_something_comes_back_with_what_was_filled_in(
    lite: Any, form: Any, completions: tuple[str, ...], fields: dict[str, str], sentence: str
) -> None:
    lite.add(Campaign(name="x", form=form), [Item("1", "q", completions)])
    ada = lite.browser("ada")
    ada.open("x")
    response = ada.send("x", note="my note <b>", unsafe="yes", **fields)
    assert response.status_code == 422
    assert sentence in response.text
    assert "my note &lt;b&gt;" in response.text
    assert form == "prompt" or ada.checked.get("unsafe") == "yes"
    assert not lite.judgements("x")


# --- who is asked what -------------------------------------------------------------------------------------------
def test_an_item_is_asked_of_as_many_people_as_the_overlap_says_and_of_nobody_twice(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair", overlap=2), some_pairs(3))
    for name in ("ada", "bob", "eve"):
        browser = page.browser(name)
        while "Which reply" in browser.open("p").text:
            browser.send("p", choice="tie")
    said = page.counted("p")
    assert Counter(one.item_id for one in said) == {"0": 2, "1": 2, "2": 2}
    assert len({(one.item_id, one.annotator) for one in said}) == 6
    assert "Nothing more for you" in page.browser("zoe").open("p").text


def test_higher_priorities_are_asked_first(lite: Any) -> None:
    items = [Item(str(i), f"question {i}", ("x", "y"), priority=float(i)) for i in range(3)]
    lite.add(Campaign(name="p", form="pair"), items)
    assert "question 2" in lite.browser("ada").open("p").text


def test_practice_comes_first_and_gold_is_mixed_in_unseen(lite: Any, some_pairs: Any) -> None:
    right = PairVerdict(label=1.0, strength=2)
    items = [
        *some_pairs(20),
        *(Item(f"g{i}", "gold?", (f"x{i}", f"y{i}"), role="gold", expected=right) for i in range(10)),
        Item("try", "practise", ("x", "y"), role="practice", expected=right, explanation="Because **so**."),
    ]
    lite.add(Campaign(name="p", form="pair", gold_share=0.5), items)
    ada = lite.browser("ada")
    assert "practise" in ada.open("p").text
    html = ada.send("p", choice="tie").text
    assert "The guide says otherwise." in html
    assert "Because <strong>so</strong>." in html
    pages = []
    while "Which reply" in (html := ada.open("p").text):
        pages.append(html)
        ada.send("p", choice="a2")
    roles = [one.role for one in lite.counted("p")]
    assert roles[0] == "practice"
    assert 0 < roles.count("gold") <= 10
    assert roles.count("ordinary") == 20
    assert not any("gold" in html.replace("gold?", "") for html in pages)
    assert len(export_rows(lite, "p")) == 20, "neither practice nor gold is exported"


def test_nobody_answers_more_than_the_limit(lite: Any, some_pairs: Any) -> None:
    lite.add(Campaign(name="p", form="pair", limit=2), some_pairs(5))
    ada = lite.browser("ada")
    for _ in range(2):
        ada.open("p")
        ada.send("p", choice="tie")
    assert "That was your share" in ada.open("p").text


def test_models_names_are_not_on_the_page(lite: Any) -> None:
    lite.add(Campaign(name="p", form="pair"), [Item("secret-id", "q", ("x", "y"), models=("ppo-40", "sft"))])
    html = lite.browser("ada").open("p").text
    assert "ppo-40" not in html
    assert "secret-id" not in html


def test_a_skipped_item_goes_to_somebody_else(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(1))
    ada, bob = page.browser("ada"), page.browser("bob")
    ada.open("p")
    assert "Nothing more for you" in bob.open("p").text
    ada.send("p", do="skip")
    assert "Nothing more for you" in ada.open("p").text
    assert "Which reply" in bob.open("p").text


def test_undo_opens_the_answer_again_and_keeps_the_first_one_set_aside(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(3))
    ada = page.browser("ada")
    html = ada.open("p").text
    first = dict(ada.hidden)
    assert "question 0" in html
    ada.send("p", choice="a3", note="hm")
    html = ada.undo("p").text
    assert "question 0" in html
    assert ada.checked["choice"] == "a3"
    assert "hm</textarea>" in html
    ada.send("p", choice="b1")
    ada.client.post("/c/p", data=first | {"do": "send", "choice": "a3"})  # the old form, sent again by the network
    said = page.judgements("p")
    assert [one.set_aside for one in said] == ["undone by the annotator", ""]
    assert len({one.id for one in said}) == 2
    assert "question 1" in ada.open("p").text


# --- what counts -------------------------------------------------------------------------------------------------
def test_an_answer_that_arrives_many_times_at_once_counts_once(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair", overlap=2), some_pairs(2))
    ada = page.browser("ada")
    ada.open("p")
    data = ada.hidden | {"do": "send", "choice": "a1"}
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda _: ada.client.post("/c/p", data=data).status_code, range(24)))
    assert set(codes) == {303}
    assert len(page.judgements("p")) == 1


def test_two_tabs_show_one_form_and_count_once(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(2))
    ada = page.browser("ada")
    ada.open("p")
    first = dict(ada.hidden)
    ada.open("p")
    assert ada.hidden["form"] == first["form"]
    ada.send("p", choice="a1")
    assert "question 1" in ada.client.post("/c/p", data=first | {"choice": "b1"}, follow_redirects=True).text
    assert [one.verdict.strength for one in page.counted("p")] == [1]


def test_a_form_of_another_person_and_a_forged_one_are_refused_alike(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(2))
    ada, bob = page.browser("ada"), page.browser("bob")
    ada.open("p")
    bob.open("p")
    refused = [bob.send("p", follow=False, form=form, choice="a1") for form in (ada.hidden["form"], "x" * 32, "")]
    assert [one.status_code for one in refused] == [404] * 3
    assert len({one.text for one in refused}) == 1
    assert not page.judgements("p")


def test_a_lease_that_ended_is_taken_again_while_there_is_room(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair", lease_seconds=60), some_pairs(1))
    ada, bob = page.browser("ada"), page.browser("bob")
    ada.open("p")
    page.clock.now += 61
    assert "Which reply" in bob.open("p").text, "the lease of ada is over"
    bob.send("p", do="skip")
    ada.send("p", choice="a1")
    assert [one.annotator for one in page.counted("p")] == ["ada"]


def test_an_answer_after_others_took_the_item_is_kept_and_does_not_count(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair", lease_seconds=60), some_pairs(1))
    ada, bob = page.browser("ada"), page.browser("bob")
    ada.open("p")
    page.clock.now += 61
    bob.open("p")
    bob.send("p", choice="b1")
    assert "came too late to count" in ada.send("p", choice="a1", note="kept").text
    by_name = {one.annotator: one for one in page.judgements("p")}
    assert by_name["bob"].set_aside == ""
    assert by_name["ada"].set_aside == assignment.LATE
    assert by_name["ada"].note == "kept"


def test_an_answer_to_a_closed_campaign_is_kept_and_does_not_count(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(2))
    ada = page.browser("ada")
    ada.open("p")
    page.close("p")
    html = ada.send("p", choice="a1").text
    assert "came too late to count" in html
    assert "asks no more" in html
    assert [one.set_aside for one in page.judgements("p")] == [assignment.CLOSED]
    assert ada.post("/c/p/undo").status_code == 410


def test_a_person_who_comes_back_to_an_ended_lease_is_asked_it_again(lite: Any, some_pairs: Any) -> None:
    lite.add(Campaign(name="p", form="pair", lease_seconds=60), some_pairs(1))
    ada, bob = lite.browser("ada"), lite.browser("bob")
    ada.open("p")
    lite.clock.now += 61
    bob.open("p")
    bob.send("p", do="skip")
    assert "question 0" in ada.open("p").text


def test_a_clock_that_goes_back_makes_the_time_unknown_and_nothing_else(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(2))
    ada = page.browser("ada")
    ada.open("p")
    page.clock.now -= 3600
    assert ada.send("p", choice="a1").status_code == 200
    (said,) = page.counted("p")
    assert said.seconds < 0
    lead = page.browser("lena", "lead")
    html = lead.get("/lead/c/p").text
    assert '<td class="n">–' in html
